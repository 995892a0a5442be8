"""The model: one file for each box of CoCa's figure, and `build`, which chooses the parts."""

from grr_coca.model.build import build
from grr_coca.model.coca import CoCa

__all__ = ["CoCa", "build"]
