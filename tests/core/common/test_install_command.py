"""The command that installs an extra, by how this package was installed. None names a stranger's package."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from grr_coca.common import extras
from grr_coca.common.extras import PACKAGES, install_command, install_origin

CLONE = Path(__file__).parents[3]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Acts as if the package were installed, not in a clone: by an installer, from an address."""

    def act(url=None, installer="pip", **told):
        monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "grr_coca" / "common" / "extras.py"))
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        texts = {"INSTALLER": f"{installer}\n", "direct_url.json": json.dumps({"url": url, **told}) if url else None}
        monkeypatch.setattr(extras, "_told", texts.get)

    return act


def test_in_a_clone_it_is_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(CLONE)
    assert install_command("serve") == "pip install -e '.[serve]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("serve") == f"pip install -e '{CLONE}[serve]'"


def test_from_a_wheel_it_is_its_file(installed, tmp_path):
    wheel = tmp_path / "my files" / "grr_coca-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    installed(wheel.as_uri(), archive_info={})
    assert install_command("open-clip") == f"pip install '{wheel}[open-clip]'"


def test_from_a_folder_it_is_that_folder(installed, tmp_path):
    installed(tmp_path.as_uri(), dir_info={})
    assert install_command("train") == f"pip install '{tmp_path}[train]'"


def test_from_a_repository_it_is_its_commit(installed):
    installed("https://example.org/owner/grr.git", vcs_info={"vcs": "git", "commit_id": "abc"})
    expected = "pip install 'grr-coca[train] @ git+https://example.org/owner/grr.git@abc'"
    assert install_command("train") == expected


@pytest.mark.parametrize("url", [None, "file:///nowhere/grr_coca-0.1.0-py3-none-any.whl"])
def test_if_its_source_is_not_known_it_names_the_packages(installed, url):
    installed(url)
    assert install_command("serve") == "pip install fastapi uvicorn python-multipart prometheus-client"


@pytest.mark.parametrize(
    ("file", "installer", "expected"),
    [
        ("pipx_metadata.json", "pip", "pipx install --force"),
        ("uv-receipt.toml", "uv", "uv tool install --force"),
        ("other", "uv", "uv pip install"),
    ],
)
def test_it_is_a_command_of_the_installer(installed, tmp_path, file, installer, expected):
    (tmp_path / file).touch()
    installed(tmp_path.as_uri(), installer)
    assert install_command("hub") == f"{expected} '{tmp_path}[hub]'"


def test_a_program_of_pipx_gets_packages_by_its_own_python(installed, tmp_path):
    (tmp_path / "pipx_metadata.json").touch()
    installed()
    assert install_command("hub") == f"{sys.executable} -m pip install huggingface-hub"


def test_windows_has_double_quotes(monkeypatch):
    monkeypatch.chdir(CLONE)
    monkeypatch.setattr(extras, "_IS_WINDOWS", True)
    assert install_command("serve") == 'pip install -e ".[serve]"'


def test_without_metadata_it_names_the_packages(installed, monkeypatch):
    """As of files that were copied into an environment by hand."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    told = extras._told
    installed()
    monkeypatch.setattr(extras, "_told", told)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_command("hub") == "pip install huggingface-hub"


def test_in_a_folder_that_was_removed_it_names_the_clone(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert install_command("serve") == f"pip install -e '{CLONE}[serve]'"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("file:///home/me/my%20files/grr_coca-0.1.0-py3-none-any.whl", "grr_coca-0.1.0-py3-none-any.whl"),
        ("https://me:secret@example.org/owner/grr.git", "https://example.org/owner/grr.git"),
        ("https://example.org/grr_coca.whl", "https://example.org/grr_coca.whl"),
        (None, "an unknown place"),
    ],
)
def test_where_it_comes_from_is_told_without_a_password_or_a_home(installed, url, origin):
    assert install_origin() == "a clone"
    installed(url)
    assert install_origin() == origin


@pytest.mark.parametrize("extra", sorted(PACKAGES))
@pytest.mark.parametrize("url", [None, "https://example.org/grr_coca.whl"])
def test_no_bare_name_is_installed(installed, extra, url):
    installed(url)
    words = install_command(extra).replace("'", " ").split()
    assert "grr-coca" not in words
    assert all("@" in words for word in words if word.startswith("grr-coca["))
