"""The processes that tests start."""

import os

import pytest
from processes import NativeCrash, launch


@pytest.mark.ci
def test_crash_in_native_code_is_reported(tmp_path):
    with pytest.warns(NativeCrash, match=r"processes ended with \[-6\], and are tried once more"):
        assert launch(tmp_path, os.abort).wait_or_crash()
