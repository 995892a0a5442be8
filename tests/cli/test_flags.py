"""The command line: docs/cli.md fixes commands, flags and defaults, and a test compares the page with them."""

import inspect
import subprocess
import sys

import pytest

import grr_coca as package
from grr_coca.cli import all_commands


@pytest.mark.parametrize("verb", sorted(all_commands()))
def test_every_flag_is_explained_in_the_help(grr_coca, verb):
    result = grr_coca(*verb.split(), "--help")
    assert result.code == 0
    shown = " ".join(result.out.replace("│", " ").split())
    assert all_commands()[verb].summary in shown
    described = all_commands()[verb].load().__doc__.partition("Args:")[2]
    for flag in inspect.signature(all_commands()[verb].load()).parameters:
        explanation = described.partition(f"{flag}:")[2].partition("\n")[0]
        assert explanation
        assert explanation.split(";")[0].split(".")[0].strip() in shown


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(grr_coca, arguments):
    result = grr_coca(*arguments)
    assert result.code == 0
    for verb, command in all_commands().items():
        assert f"{verb} " in result.out
        assert command.summary in result.out


def test_no_command_shows_the_help_and_fails(grr_coca):
    result = grr_coca()
    assert result.code == 2
    assert "usage: grr-coca COMMAND" in result.out


@pytest.mark.parametrize("word", ["--version", "version"])
def test_version_is_the_packages(grr_coca, word):
    assert grr_coca(word).out.strip() == package.__version__


@pytest.mark.parametrize("command", ["models", "export onnx", "export"])
def test_help_with_a_command_is_its_help(grr_coca, refused, command):
    expected = grr_coca(*command.split(), "--help")
    assert expected.code == 0
    assert grr_coca("help", *command.split()) == expected
    assert "unknown command 'modles'; did you mean 'models'?" in refused("help", "modles")


@pytest.mark.parametrize(
    ("verb", "meant"), [("pretrian", "pretrain"), ("captions", "caption"), ("fine-tune", "finetune")]
)
def test_unknown_command_suggests_the_nearest(refused, verb, meant):
    assert f"unknown command '{verb}'; did you mean '{meant}'?" in refused(verb)


def test_two_word_command_lists_its_kinds(grr_coca, refused):
    for arguments, code in ((["import", "--help"], 0), (["import"], 2)):
        result = grr_coca(*arguments)
        assert result.code == code
        assert "import open_clip" in result.out
        assert "pretrain" not in result.out
    assert "unknown command 'import open_klip'; did you mean 'import open_clip'?" in refused("import", "open_klip", "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "open_clip", "weights.bin"],
        ["export", "onnx", "-c", "run", "--out", "graphs", "--precision", "int4"],
        ["pretrain", "recipe.yaml", "--seed", "many"],
        ["data"],
        ["data", "shuffle", "a.tar"],
        ["embed", "cat.png", "-c", "run"],
        ["compare", "run"],
        ["demo", "a.yaml", "b.yaml"],
    ],
    ids=" ".join,
)
def test_invalid_flags_report_one_line(grr_coca, arguments):
    result = grr_coca(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err + result.out


def test_installed_command_reports_one_line(tmp_path):
    command = [sys.executable, "-m", "grr_coca", "pretrain", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.yaml: no such recipe\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
