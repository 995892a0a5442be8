"""Which part of the model a training step is in, told by hooks that leave the step as it is.

Forward, a part begins where its module is called; backward, where the gradient of its output has arrived, since
autograd goes back part by part. Whatever a meter reads between two such marks belongs to the part in between: seconds,
or counted FLOPs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from grr_coca.train.step import Trainer

HEAD, UPDATE = "head and losses", "clipping and update"
PARTS = {
    "image encoder": ("image_encoder",),
    "poolers": ("captioning_pooler", "contrastive_pooler", "image_proj"),
    "unimodal text": ("text_decoder", "text_proj"),
    "multimodal text": (),
    HEAD: (),
    UPDATE: (),
}
"""Modules by part. The multimodal half begins behind the unimodal one, the head at the final norm; both losses count
to the head."""


class Spans:
    """Readings of a meter by part, added up over steps."""

    def __init__(self, trainer: Trainer, meter: Callable[[], float]) -> None:
        self._trainer = trainer
        self._meter = meter
        self._now: str | None = None
        self._since = 0.0
        self.total: dict[str, float] = defaultdict(float)

    def begin(self, part: str | None) -> None:
        """From here on, what the meter reads belongs to `part`."""
        reading = self._meter()
        if self._now is not None:
            self.total[self._now] += reading - self._since
        self._now, self._since = part, reading

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Steps in here are taken apart."""
        model, optimizers = self._trainer.model.raw, self._trainer.optimizers
        handles = [hook for part, names in PARTS.items() for hook in self._hooks(part, model, names)]
        handles.append(model.text_proj.register_forward_hook(lambda *_: self.begin("multimodal text")))
        norm = model.multimodal_decoder.norm
        handles.append(norm.register_forward_pre_hook(self._at_head, with_kwargs=True))
        clip = optimizers.clip
        optimizers.clip = lambda: (self.begin(UPDATE), clip())[1]  # type: ignore[method-assign]
        try:
            yield
        finally:
            optimizers.clip = clip  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()

    def _hooks(self, part: str, model: nn.Module, names: tuple[str, ...]) -> Iterator[Any]:
        for name in names:
            module = model.get_submodule(name)
            yield module.register_forward_pre_hook(lambda *_: self.begin(part))
            yield module.register_forward_hook(lambda _, __, output: self._on_gradient(output, part))

    def _at_head(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.begin(HEAD)
        self._on_gradient((*args, *kwargs.values()), "multimodal text")

    def _on_gradient(self, outputs: Any, part: str) -> None:
        for tensor in (outputs,) if isinstance(outputs, Tensor) else outputs:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self.begin(part))
