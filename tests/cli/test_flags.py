"""The command line: docs/cli.md fixes commands, flags and defaults, and a test compares the page with them."""

import inspect
import subprocess
import sys

import pytest

import grr_coca as package
from grr_coca.cli import all_commands


@pytest.mark.parametrize("verb", sorted(all_commands()))
def test_every_flag_is_explained_in_the_help(grr_coca, verb):
    said = grr_coca(*verb.split(), "--help")
    assert said.code == 0
    shown = " ".join(said.out.replace("│", " ").split())
    assert all_commands()[verb].summary in shown
    described = all_commands()[verb].load().__doc__.partition("Args:")[2]
    for flag in inspect.signature(all_commands()[verb].load()).parameters:
        explanation = described.partition(f"{flag}:")[2].partition("\n")[0]
        assert explanation
        assert explanation.split(";")[0].split(".")[0].strip() in shown


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_every_command(grr_coca, arguments):
    said = grr_coca(*arguments)
    assert said.code == 0
    for verb, command in all_commands().items():
        assert f"{verb} " in said.out
        assert command.summary in said.out


def test_no_command_shows_the_help_and_fails(grr_coca):
    said = grr_coca()
    assert said.code == 2
    assert "usage: grr-coca COMMAND" in said.out


def test_version_is_the_packages(grr_coca):
    assert grr_coca("--version").out.strip() == package.__version__


@pytest.mark.parametrize(
    ("verb", "meant"), [("pretrian", "pretrain"), ("captions", "caption"), ("fine-tune", "finetune")]
)
def test_unknown_command_suggests_the_nearest(refused, verb, meant):
    assert f"unknown command '{verb}'; did you mean '{meant}'?" in refused(verb)


def test_two_word_command_lists_its_kinds(grr_coca, refused):
    for arguments, code in ((["import", "--help"], 0), (["import"], 2)):
        said = grr_coca(*arguments)
        assert said.code == code
        assert "import open_clip" in said.out
        assert "pretrain" not in said.out
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
    said = grr_coca(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err + said.out


def test_installed_command_reports_one_line(tmp_path):
    command = [sys.executable, "-m", "grr_coca", "pretrain", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.yaml: no such recipe\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
