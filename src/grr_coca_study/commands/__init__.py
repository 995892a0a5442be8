"""Commands for studies. An entry point of `grr_coca.commands` names this table of commands."""

from grr_coca.cli import Command

COMMANDS = {
    "demo": Command(
        "grr_coca_study.commands.demo:run",
        "pretrain, fine-tune and compare both models on small corpora that come with the code",
    ),
    "study": Command(
        "grr_coca_study.commands.study:run",
        "compare models over several seeds: run a plan, show its status, report the results",
    ),
}
