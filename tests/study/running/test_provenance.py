"""What a row says of the code that made it."""

import subprocess

import pytest

from grr_coca.study.running import stage as provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit and a package folder in it; returns git and the folder."""
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.code_commit.cache_clear()
    (package / "__init__.py").write_text("")

    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    yield git, package
    provenance.code_commit.cache_clear()


def test_the_commit_is_that_of_the_package_and_a_changed_file_is_marked(repository):
    git, package = repository
    git("add", ".")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert provenance.code_commit() == commit
    (package / "__init__.py").write_text("changed = True")
    provenance.code_commit.cache_clear()
    assert provenance.code_commit() == f"{commit}+"


def test_a_package_that_is_installed_in_a_repository_of_the_users_tells_its_version(repository):
    git, _ = repository
    git("commit", "-q", "--allow-empty", "-m", "the user's own")
    assert provenance.code_commit().startswith("version ")
