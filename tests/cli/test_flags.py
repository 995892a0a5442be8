"""The command line's surface: verbs and flags are a promise, so they are frozen here."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

import grr_coca as package
from grr_coca.cli import VERBS, data
from grr_coca.infer.generate import GenerationOptions

FLAGS = {
    "doctor": {"json": False},
    "models": {"json": False},
    "serve": {
        "index": None,
        "checkpoint": None,
        "pictures": (),
        "host": "127.0.0.1",
        "port": 8000,
        "open": False,
        "engine": "auto",
        "queue": 64,
        "seconds": 30,
        "max_megabytes": 20,
        "max_megapixels": 50,
    },
    "caption": {
        "checkpoint": "icons",
        "images": (),
        "out": None,
        "sidecar": None,
        "overwrite": False,
        "json": False,
        "tags": 0,
        "prompt": "",
        "exclude": (),
        "batch_size": 32,
        "on": "this",
        "engine": "auto",
        "decoding": str(GenerationOptions()).replace("GenerationOptions", "Decoding"),
    },
    "classify": {
        "checkpoint": "icons",
        "labels": ...,
        "images": (),
        "templates": (),
        "top": 5,
        "sidecar": None,
        "min_probability": None,
        "json": False,
        "exclude": (),
        "batch_size": 32,
        "engine": "auto",
    },
    "match": {
        "sources": (),
        "used_in": None,
        "n": 5,
        "names": True,
        "decided": None,
        "check": None,
        "out": None,
        "json": False,
        "exclude": (),
        "checkpoint": None,
        "engine": "auto",
    },
    "lint": {
        "sources": (),
        "false_alarms": "0.01",
        "baseline": None,
        "update_baseline": False,
        "out": None,
        "json": False,
        "exclude": (),
        "checkpoint": "icons",
        "engine": "auto",
    },
    "mcp": {"indexes": (), "engine": "auto"},
    "duplicates": {"index": ..., "max_distance": 6, "min_cosine": "0.95", "json": False},
    "index": {
        "out": ...,
        "images": (),
        "checkpoint": None,
        "forget": (),
        "exclude": (),
        "watch": False,
        "check": False,
        "batch_size": 32,
        "on": "this",
        "engine": "auto",
    },
    "search": {
        "index": ...,
        "texts": (),
        "n": 20,
        "image": (),
        "without": (),
        "weights": (),
        "where": None,
        "min_relevance": "0.0",
        "hybrid": True,
        "json": False,
        "null": False,
        "out": None,
        "explain": False,
        "checkpoint": None,
        "engine": "auto",
    },
    "compare": {"checkpoint": ..., "baseline": ..., "data": (), "batch_size": 64},
    "data": {"action": ...},
    "demo": {
        "plan": "recipes/demo.yaml",
        "out": "runs/demo",
        "minutes": "10.0",
        "steps": None,
        "fresh": False,
        "dry_run": False,
        "json": False,
    },
    "study": {"action": ...},
    "embed": {
        "checkpoint": "icons",
        "out": ...,
        "images": (),
        "texts": None,
        "exclude": (),
        "batch_size": 32,
        "on": "this",
        "engine": "auto",
    },
    "evaluate": {
        "checkpoint": ...,
        "data": (),
        "task": "loss",
        "batch_size": 64,
        "folds": None,
        "out": None,
        "labels": None,
        "templates": None,
        "train": None,
        "json": False,
    },
    "explain": {"image": ..., "checkpoint": "icons", "text": None, "out": None},
    "finetune": {
        "recipe": ...,
        "checkpoint": None,
        "data": None,
        "out": None,
        "seed": None,
        "resume": False,
        "dry_run": False,
    },
    "export open_clip": {"checkpoint": ..., "out": ...},
    "export onnx": {"checkpoint": ..., "out": ..., "precision": "fp32"},
    "export web": {"out": ..., "checkpoint": None, "index": None, "title": None, "runtime": None, "pictures": ()},
    "import index": {"path": ..., "out": ...},
    "export index": {"index": ..., "out": ...},
    "import open_clip": {"path": ..., "out": ..., "model": None, "as_stored": False},
    "info": {"preset": ..., "other": None, "size": "tiny", "batch": None, "text_length": None},
    "push": {
        "checkpoint": ...,
        "hub_id": ...,
        "licence": None,
        "data": None,
        "figures": None,
        "private": False,
        "update": False,
        "dry_run": False,
    },
    "pretrain": {
        "recipe": ...,
        "preset": None,
        "data": None,
        "out": None,
        "seed": None,
        "resume": False,
        "dry_run": False,
    },
}
"""Each verb's flags with their defaults; `...` where there is none."""


def plain(default: object) -> object:
    if default is inspect.Parameter.empty:
        return ...
    return default if default is None or isinstance(default, bool | int | tuple) else str(default)


def test_the_verbs_are_these():
    assert sorted(VERBS) == sorted(FLAGS)


@pytest.mark.parametrize("verb", sorted(FLAGS))
def test_the_flags_of_a_verb_are_these(verb):
    signature = inspect.signature(VERBS[verb].load())
    assert {name: plain(parameter.default) for name, parameter in signature.parameters.items()} == FLAGS[verb]


DATA_FLAGS = {
    "check": {"path": ..., "sheet": None, "json": False},
    "convert": {"path": ..., "out": ..., "pairs_per_shard": 10_000, "image_size": None},
    "stats": {"path": ..., "json": False},
}
"""The flags of what `data` can do."""


@pytest.mark.parametrize("action", sorted(DATA_FLAGS))
def test_the_flags_of_a_data_action_are_these_and_explained(grr_coca, action):
    signature = inspect.signature(getattr(data, action.capitalize()))
    flags = {name: plain(parameter.default) for name, parameter in signature.parameters.items()}
    assert flags == DATA_FLAGS[action]
    said = grr_coca("data", action, "--help")
    assert said.code == 0
    for flag in flags.keys() - {"path", "out"}:
        assert f"--{flag.replace('_', '-')} " in said.out.replace(",", " ")


@pytest.mark.parametrize("verb", sorted(FLAGS))
def test_every_flag_is_explained_in_the_help(grr_coca, verb):
    said = grr_coca(*verb.split(), "--help")
    assert said.code == 0
    assert VERBS[verb].summary in " ".join(said.out.replace("│", " ").split())
    described = VERBS[verb].load().__doc__.partition("Args:")[2]
    shown = " ".join(said.out.replace("│", " ").split())
    for flag in FLAGS[verb]:
        explanation = described.partition(f"{flag}:")[2].partition("\n")[0]
        assert explanation.split(";")[0].split(".")[0].strip() in shown
        assert explanation


def test_every_option_of_generation_is_a_flag_of_captioning(grr_coca):
    shown = grr_coca("caption", "--help").out
    for field in fields(GenerationOptions):
        assert f"--{field.name.replace('_', '-')} " in shown


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_every_verb(grr_coca, arguments):
    said = grr_coca(*arguments)
    assert said.code == 0
    for verb, (_, summary) in VERBS.items():
        assert f"{verb} " in said.out
        assert summary in said.out


def test_no_verb_shows_the_help_and_fails(grr_coca):
    said = grr_coca()
    assert said.code == 2
    assert "usage: grr-coca VERB" in said.out


def test_the_version_is_the_packages(grr_coca):
    assert grr_coca("--version").out.strip() == package.__version__


@pytest.mark.parametrize(
    ("verb", "meant"), [("pretrian", "pretrain"), ("captions", "caption"), ("fine-tune", "finetune")]
)
def test_a_wrong_verb_names_the_nearest(refused, verb, meant):
    assert f"there is no verb '{verb}'; did you mean '{meant}'?" in refused(verb)


def test_a_verb_of_two_words_tells_its_kinds(grr_coca, refused):
    for arguments, code in ((["import", "--help"], 0), (["import"], 2)):
        said = grr_coca(*arguments)
        assert said.code == code
        assert "import open_clip" in said.out
        assert "pretrain" not in said.out
    assert "there is no 'import open_klip'; did you mean 'import open_clip'?" in refused("import", "open_klip", "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "open_clip"],
        ["import", "open_clip", "weights.bin"],
        ["export", "open_clip", "-c", "run"],
        ["export", "onnx", "-c", "run"],
        ["export", "onnx", "-c", "run", "--out", "graphs", "--precision", "int4"],
        ["pretrain"],
        ["pretrain", "recipe.yaml", "--epochs", "3"],
        ["pretrain", "recipe.yaml", "--seed", "many"],
        ["data"],
        ["data", "check"],
        ["data", "shuffle", "a.tar"],
        ["data", "convert", "a.tar"],
        ["caption", "cat.png", "-c", "run", "--top-k", "few"],
        ["embed", "cat.png", "-c", "run"],
        ["classify", "cat.png", "-c", "run"],
        ["explain", "-c", "run"],
        ["index", "cat.png"],
        ["search", "index", "cat", "-n", "many"],
        ["duplicates"],
        ["evaluate"],
        ["evaluate", "run", "--batch-size", "large"],
        ["compare", "run"],
        ["info"],
        ["demo", "a.yaml", "b.yaml"],
    ],
    ids=" ".join,
)
def test_wrong_flags_are_refused_without_a_traceback(grr_coca, arguments):
    said = grr_coca(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err + said.out


def test_the_installed_command_answers_in_one_line_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "grr_coca", "pretrain", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.yaml: no such recipe\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
