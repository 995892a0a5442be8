"""The command that installs an extra. It never names a package that another project may own."""

from pathlib import Path

from grr_coca.common import errors
from grr_coca.common.errors import PACKAGES, install_command, is_clone

CLONE = Path(__file__).parents[3]


def test_command_in_clone_installs_extra_of_clone():
    assert is_clone()
    assert install_command("serve") == f'pip install -e "{CLONE}[serve]"'


def test_command_elsewhere_names_packages_but_not_the_project(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "_ROOT", tmp_path)
    assert not is_clone()
    assert install_command("serve") == "pip install fastapi uvicorn python-multipart prometheus-client"
    for extra in PACKAGES:
        assert "grr-coca" not in install_command(extra)
