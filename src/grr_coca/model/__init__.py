"""The model: one file for each box of CoCa's figure, and `build`, which chooses their parts."""

from grr_coca.model.build import build, build_without_weights
from grr_coca.model.coca import CoCa

__all__ = ["CoCa", "build", "build_without_weights"]
