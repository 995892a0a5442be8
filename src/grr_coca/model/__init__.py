"""The model, one file per box of CoCa's figure; `build` is the one place that chooses parts."""

from grr_coca.model.build import build
from grr_coca.model.coca import CoCa

__all__ = ["CoCa", "build"]
