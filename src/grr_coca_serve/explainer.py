"""Heat maps of captions for the page. They need PyTorch and another copy of the model, loaded when it is first used."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from grr_coca.common.errors import UserError
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.pictures import PictureReader
from grr_coca_serve.request_error import RequestError

if TYPE_CHECKING:
    from grr_coca.data.preprocess import Box
    from grr_coca.infer import ImageTextModel

_MAX_WAITING = 8
"""Maximum number of images that wait for heat maps. Each image takes tens of milliseconds."""
_DIGITS = 4


class Explainer:
    """Thread that captions images and computes heat maps for the words of the captions, one image at a time.

    Args:
        load: Function that loads the model with PyTorch. It is called in that thread.
        reader: Decoder of images.
    """

    is_installed = find_spec("torch") is not None
    """Whether PyTorch is installed."""

    def __init__(self, load: "Callable[[], ImageTextModel]", reader: PictureReader) -> None:
        self._load = load
        self._reader = reader
        self._model: ImageTextModel | None = None
        self._thread = DaemonThreads(1, "explain")
        self._waiting = 0

    def close(self) -> None:
        """End the thread after the work that is already queued. This method does not wait for it."""
        self._thread.close()

    def require(self) -> None:
        """Check that PyTorch is installed.

        Raises:
            RequestError: If PyTorch is not installed. The message names the extra that installs it.
        """
        if not self.is_installed:
            raise RequestError(
                501, "heat maps need PyTorch, which is not installed on the server; install the extra `torch` there"
            )

    async def explain(self, data: bytes) -> dict[str, Any]:
        """Return the content of an `ExplainAnswer`: the caption of an image, and a heat map for each of its words.

        Raises:
            RequestError: If PyTorch is not installed, PyTorch cannot load the model, no image was sent, or too many
                images are waiting.
            UserError: If the image cannot be read.
        """
        self.require()
        if self._waiting >= _MAX_WAITING:
            raise RequestError(429, "too many images are waiting for heat maps; try again in a moment", retry_after=2)
        self._waiting += 1
        try:
            return await self._thread.do(self._explain, data)
        finally:
            self._waiting -= 1

    def _explain(self, data: bytes) -> dict[str, Any]:
        from grr_coca.infer.explain import caption_maps  # lazy import: PyTorch

        if self._model is None:
            try:
                self._model = self._load()
            except UserError as error:  # for example, an int8 model
                raise RequestError(501, f"heat maps are unavailable for this model: {error}") from error
        checkpoint = self._model.checkpoint
        image = self._reader.decoded(data, checkpoint.preprocess)
        (described,) = self._model.describe_many([image])
        pixels, square = checkpoint.pixels(image), _to_fractions(checkpoint.preprocess.visible_box(image), image.size)
        caption = described.captions[0]
        maps = caption_maps(checkpoint, pixels, caption.token_ids)
        return {
            "caption": caption.text,
            "square": square,
            "words": [{"word": word, "heat": _scale_to_one(heat.numpy())} for word, heat in maps],
        }


def _to_fractions(box: "Box", size: tuple[int, int]) -> list[float]:
    """Convert a box to fractions of an image's width and height."""
    return [round(place / length, _DIGITS) for place, length in zip(box, (*size, *size), strict=True)]


def _scale_to_one(heat: np.ndarray) -> list[list[float]]:
    """Return the rows of a heat map, scaled so that its maximum is 1 (unless all values are 0), with 4 digits."""
    largest = max(float(heat.max()), 1e-30)
    return (heat.astype(np.float64) / largest).round(_DIGITS).tolist()
