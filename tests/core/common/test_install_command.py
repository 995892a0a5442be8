"""The command that installs an extra. It never names a package that another project may own."""

import os
import shlex
import sys
from pathlib import Path

from grr_coca.common import errors
from grr_coca.common.errors import PACKAGES, install_command, is_clone, pip_install_command

CLONE = Path(__file__).parents[3]


def test_command_in_clone_installs_extra_of_clone():
    assert is_clone()
    assert shlex.split(install_command("serve"))[1:] == ["-m", "pip", "install", "-e", f"{CLONE}[serve]"]


def test_python_is_named_only_if_its_folder_is_first_in_path(monkeypatch):
    folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([folder, "/usr/bin"]))
    assert pip_install_command("h5py") == "python -m pip install h5py"
    monkeypatch.setenv("PATH", os.pathsep.join(["/nowhere", folder]))
    assert shlex.split(pip_install_command("a[b]")) == [sys.executable, "-m", "pip", "install", "a[b]"]


def test_command_outside_clone_names_only_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "_ROOT", tmp_path)
    assert not is_clone()
    assert install_command("serve") == pip_install_command(
        "fastapi", "uvicorn", "python-multipart", "prometheus-client"
    )
    for extra in PACKAGES:
        assert "grr-coca" not in install_command(extra)
