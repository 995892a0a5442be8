"""The corpus `icons` can be rebuilt from the registry's packages, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_icons_are_fetched_and_built_to_the_byte(tmp_path):
    command = [sys.executable, "scripts/build_datasets", "icons"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'grr-coca' / 'icons'}: train ")
    assert "not to the byte" not in result.stdout
