"""Plug-ins: packages of this distribution and of others add commands, sources and endpoints by entry points."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from grr_coca.common import plugins

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path):
    """The example as pip installs it: its module, and the metadata of its distribution."""
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(EXAMPLE / "grr_coca_colours.py", site)
    install(site, tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    return site


def install(site: Path, project: dict) -> None:
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items()) for group, each in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def grr_coca(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "grr_coca", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def test_plugin_adds_command_and_source(installed):
    done = grr_coca(installed, "colours", "--source", "colours:red,green")
    assert (done.returncode, done.stdout) == (0, "red green\n"), done.stderr
    listed = grr_coca(installed, "--help").stdout
    assert "print the captions of a source of pairs" in listed


@pytest.mark.ci
def test_variable_restricts_plugins(installed):
    for allowed, code in {"grr-coca-colours": 0, "another, grr-coca-colours": 0, "another": 2, "": 2}.items():
        done = grr_coca(installed, "colours", "--source", "colours:red", GRR_COCA_PLUGINS=allowed)
        assert done.returncode == code, (allowed, done.stderr)
    assert done.stderr.startswith("error: unknown command 'colours'")
    assert done.stderr.count("\n") == 1


def clear_caches() -> None:
    for function in (plugins._distributions, plugins._entries, plugins.own, plugins.others):
        function.cache_clear()


def test_broken_plugin_gives_one_warning(tmp_path):
    entry_points = {"grr_coca.commands": {"broken": "no_such_module:COMMANDS"}}
    install(tmp_path, {"name": "broken-plugin", "version": "1.0", "entry-points": entry_points})
    listed = grr_coca(tmp_path, "--help")
    assert listed.returncode == 0
    assert listed.stdout.startswith("usage:")
    assert listed.stderr.count("\n") == 1
    assert "broken-plugin: plug-in 'broken' cannot be imported and is skipped" in listed.stderr
    assert grr_coca(tmp_path, "models").stderr == "", "a command of the core asks no plug-in for its name"


def test_help_does_not_import_importlib_metadata():
    code = "import sys; from grr_coca.cli import main; main(['--help']); print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.endswith("False\n")


def test_entry_points_are_read_as_importlib_metadata_reads_them(tmp_path, monkeypatch):
    text = (
        "# a comment\n[console_scripts]\nx = y:z\n\n[grr_coca.commands]\none=a.b:C.d\n"
        "two = e : f\nthree = g:h [extra]\n[grr_coca.sources]\nfour = i\n"
    )
    for name in ("Some_Name-1.0.dist-info", "older.egg-info", "sub/some.name-0.9.dist-info"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "entry_points.txt").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "no-such.zip"), str(tmp_path), str(tmp_path / "sub")])
    clear_caches()
    try:
        found = plugins._entries(is_own=False)
    finally:
        clear_caches()
    expected = {
        (one.group, one.name, one.module, one.attr or "")
        for one in Distribution.at(tmp_path / "older.egg-info").entry_points
        if one.group.startswith("grr_coca.")
    }
    for provider in ("some-name", "older"):
        mine = [one for one in found if one.provider == provider]
        values = {(one.group, one.name, *f"{one.value}:".split(":")[:2]) for one in mine}
        assert values == expected
        assert len(mine) == len(expected), "the first of two versions counts"


@pytest.mark.ci
def test_endpoint_opens_only_if_named(installed):
    code = (
        "from fastapi import FastAPI\nfrom grr_coca_serve.app import _additional_endpoints\n"
        "app = [endpoints.__module__ for endpoints in _additional_endpoints(NAMES)]\nprint(*app)"
    )
    variables = {**os.environ, "PYTHONPATH": str(installed)}

    def additional(names: list[str]) -> str:
        command = [sys.executable, "-c", code.replace("NAMES", repr(names))]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=True).stdout

    assert additional([]) == "grr_coca_icons.endpoints\n"
    assert additional(["colours"]) == "grr_coca_icons.endpoints grr_coca_colours\n"
    done = grr_coca(installed, "serve", "--plugin", "colors", "--port", "0")
    assert done.returncode == 2
    assert "did you mean 'colours'?" in done.stderr


def test_own_packages_are_registered():
    assert plugins.is_installed()
    commands = plugins.own("grr_coca.commands")
    assert set(commands) == {"icons", "open_clip", "search", "serve", "study"}
    assert plugins.find("grr_coca.functions", "Index").__name__ == "Index"
    assert plugins.find("grr_coca.functions", "Indexx") is None


def test_bare_checkout_requests_installation(monkeypatch, capsys):
    from grr_coca.cli import main

    monkeypatch.setattr(plugins, "DISTRIBUTION", "no-such-distribution")
    monkeypatch.setenv(plugins.VARIABLE, "")
    clear_caches()
    try:
        assert main(["search", "nowhere", "cat"]) == 2
    finally:
        monkeypatch.undo()
        clear_caches()
    assert "only the core is installed; run in the clone: " in capsys.readouterr().err
