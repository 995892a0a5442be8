"""Features that a precision cannot represent are reported with a fix that helps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support import real_pairs, write_shard

from grr_coca.common.errors import UserError
from grr_coca.data.features import EncoderInfo
from grr_coca.data.preprocess import EncoderPreprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import ByImage
from grr_coca.infer.encoder import ImageTokens
from grr_coca.infer.write_features import write_features


@dataclass
class ConstantEncoder:
    """Encoder whose tokens all have one value."""

    info: EncoderInfo
    value: float

    def encode(self, pixels: np.ndarray) -> ImageTokens:
        return ImageTokens(np.full((len(pixels), 1, 4), self.value, np.float32), np.ones((len(pixels), 1), bool))

    def write_graph(self, path: Path) -> None:
        raise NotImplementedError(path)


@pytest.mark.parametrize(
    ("value", "precision", "message"),
    [
        (1e6, "fp16", "infinite in half precision; use --precision fp32"),
        (np.inf, "fp32", "NaN or infinite; use another encoder"),
        (np.nan, "fp32", "NaN or infinite; use another encoder"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_features_that_are_not_finite_raise(tmp_path, value, precision, message):
    write_shard(tmp_path / "pairs.tar", real_pairs(2))
    info = EncoderInfo(
        name="constant",
        weights="0",
        licence="mit",
        preprocess=EncoderPreprocess(image_size=8),
        embed_dim=4,
        num_tokens=1,
    )
    images = ByImage(open_source(str(tmp_path / "pairs.tar")))
    with pytest.raises(UserError, match=message):
        write_features(
            images, ConstantEncoder(info, value), "mean", tmp_path / "features", lambda _: None, precision=precision
        )
