"""`doctor` reports installed packages, how to install missing ones, and corrupt files."""

import base64
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from importlib.metadata import FileHash, PackagePath
from pathlib import Path

import pytest

from grr_coca.cli import doctor, main
from grr_coca.common.errors import PACKAGES, install_command


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A copy of the models that ship, to damage."""
    folder = tmp_path / "weights"
    shutil.copytree(doctor.FOLDER, folder)
    monkeypatch.setattr(doctor, "FOLDER", folder)
    return folder


def doctor_report(capsys):
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_doctor_reports_versions_and_every_extra(capsys):
    found = doctor_report(capsys)
    assert found["files"] == "intact"
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert found["extras"].keys() == PACKAGES.keys()
    assert found["engine"] == "onnx for icons"


def test_names_the_install_command_of_missing_extras(capsys, monkeypatch):
    version = importlib.metadata.version

    def without(package):
        if package == "uvicorn":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    found = doctor_report(capsys)
    assert "uvicorn (missing)" in found["extras"]["serve"]
    assert found["missing"]["serve"] == install_command("serve")


def test_reports_the_size_of_the_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "grr-coca" / "models" / "deep").mkdir(parents=True)
    (tmp_path / "grr-coca" / "models" / "deep" / "file").write_bytes(bytes(1_500_000))
    assert doctor_report(capsys)["cache"] == {str(tmp_path / "grr-coca" / "models"): "1.5 MB"}


def test_changed_byte_of_a_model_is_found(weights, capsys):
    path = weights / "icons" / "tokenizer.json"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    (weights / "pictograms" / "text.onnx").unlink()
    assert main(["doctor"]) == 2
    result = capsys.readouterr()
    assert "corrupt or missing: icons/tokenizer.json, pictograms/text.onnx" in result.out
    assert (
        result.err == "error: icons/tokenizer.json, pictograms/text.onnx: corrupt or missing; install grr-coca again\n"
    )


def test_changed_file_of_an_installed_wheel_is_found(capsys, monkeypatch, tmp_path):
    (tmp_path / "grr_coca").mkdir()
    files = []
    for name, content in (("whole.py", b"whole"), ("changed.py", b"other")):
        (tmp_path / "grr_coca" / name).write_bytes(content)
        file = PackagePath(f"grr_coca/{name}")
        digest = base64.urlsafe_b64encode(hashlib.sha256(b"whole").digest()).decode().rstrip("=")
        file.hash = FileHash(f"sha256={digest}")
        file.dist = importlib.metadata.PathDistribution(tmp_path / "grr_coca-0.1.0.dist-info")
        files.append(file)

    class Installed(importlib.metadata.Distribution):
        def read_text(self, name):
            return None

        def locate_file(self, path):
            return tmp_path / path

        files = property(lambda self: files)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed())
    assert main(["doctor"]) == 2
    assert "error: grr_coca/changed.py: corrupt" in capsys.readouterr().err


@pytest.mark.ci
def test_doctor_imports_no_engine():
    code = (
        "import sys; from grr_coca.cli import main; main(['doctor']); print(sorted(set(sys.argv) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "torch", "onnxruntime", "tokenizers", "fastapi"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.splitlines()[-1] == "[]"
