"""Engine that runs any model in PyTorch, on any device.

Shapes: B images or texts, S image size in pixels, E joint embedding width, K captions of an image, R captions (rows;
R / B neighbouring rows belong to one image), T new tokens, L slots of the caches, Q image tokens of width C, N ids, V
vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from grr_coca.common.threads import num_threads
from grr_coca.common.torch_private import copy_modules
from grr_coca.data.batch import FeatureTokens, normalize
from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.encoder import ImageTokens
from grr_coca.infer.engine.base import MAX_WORKERS, SMALL_MODEL, EncodedImages, EngineName, Logits
from grr_coca.infer.fast.layers import AbsorbedCrossAttention, fast_copy
from grr_coca.infer.generate.captions import ArrayLogits
from grr_coca.model.attention import CachedLayout, CrossAttention, KeyValueCache, KeyValues, Mask, at_least_fp32
from grr_coca.model.coca import CoCa, fast_products


class TorchEngine:
    """`Engine` of a model in PyTorch.

    The engine uses a copy of the model in eval mode, so the model itself can continue training. The copy shares the
    parameters of the model. On a CPU, the copy has fast layers, which store some weights in another layout. Call
    `refresh` after the weights have changed.
    """

    name: EngineName = "torch"

    def __init__(self, model: CoCa, preprocess: Preprocess) -> None:
        self._original = model
        self._preprocess = preprocess
        self.embed_dim = len(model.text_proj.weight)
        self.context_length = model.text_decoder.context_length
        self.vocab_size = len(model.text_decoder.tok_embeddings.weight)
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        self._is_small = num_bytes < SMALL_MODEL
        self.refresh()

    def refresh(self) -> None:
        """Use the model's current weights. Until this method is called, results mix old and new weights."""
        self._plain = copy_modules(self._original).eval()
        self._fast = fast_copy(self._plain)

    @property
    def model(self) -> CoCa:
        """Copy of the model to compute with: normally the fast copy, but under autocast the plain copy, because fast
        layers do not support autocast."""
        return self._plain if torch.is_autocast_enabled("cpu") else self._fast

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._original.device

    @property
    def workers(self) -> int:
        """Number of workers as in `Engine`, but 1 under autocast, which PyTorch sets separately for each thread."""
        is_split = self._is_small and self.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return min(torch.get_num_threads(), num_threads(), MAX_WORKERS) if is_split else 1

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """Set the number of PyTorch threads to 1 within a `with` block; see `Engine`.

        A thread that starts in the block keeps this number, because a new thread uses the most recently set number.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @property
    def logit_scale(self) -> float:
        """Factor that converts cosines to logits; see `Engine`."""
        return self._original.logit_scale.detach().float().exp().item()

    @property
    def logit_bias(self) -> float | None:
        """Offset of the logits; see `Engine`."""
        bias = self._original.logit_bias
        return None if bias is None else bias.detach().float().item()

    @torch.inference_mode()
    def encode_images(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> EncodedImages:
        """Encode images; see `Engine`. The context contains the image tokens."""
        with fast_products(self.device):
            image = self.model.encode_image(self._normalize_pixels(pixels))
        return EncodedImages(_as_array(image.embedding.float()), image)

    @torch.inference_mode()
    def encode_features(
        self, features: ImageTokens, pixels: UInt8[np.ndarray, "B S S 3"] | None = None
    ) -> EncodedImages:
        """Encode features of a frozen encoder in the same way as `encode_images` encodes images.

        Args:
            features: Features that the model was trained with: all tokens, or their mean.
            pixels: Pixels for the model's own image encoder. None if the model has no image encoder.
        """
        dtype = self._original.logit_scale.dtype
        tokens = torch.from_numpy(features.tokens).to(self.device, dtype)
        mask = None if features.mask.all() else torch.from_numpy(features.mask).to(self.device)
        images = None if pixels is None else self._normalize_pixels(pixels)
        with fast_products(self.device):
            image = self.model.encode_image(images, features=FeatureTokens(tokens, mask))
        return EncodedImages(_as_array(image.embedding.float()), image)

    @torch.inference_mode()
    def encode_texts(
        self, token_ids: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B E"]:
        """Encode texts; see `Engine`."""
        ids = torch.from_numpy(token_ids).to(self.device)
        with fast_products(self.device):
            return _as_array(self.model.encode_text(ids, torch.from_numpy(lengths)).float())

    def decoder(
        self, images: EncodedImages, *, num_prompt: int, max_tokens: int, num_captions: int = 1, beams: bool = False
    ) -> "TorchDecoder":
        """Create a decoder; see `Engine`."""
        return TorchDecoder(
            self.model,
            images.context.tokens,
            num_prompt=num_prompt,
            max_tokens=max_tokens,
            num_captions=num_captions,
            beams=beams,
            mask=images.context.mask,
        )

    def _normalize_pixels(self, pixels: UInt8[np.ndarray, "B S S 3"]) -> Float[Tensor, "B 3 S S"]:
        """Normalize pixels to the input of the model, in its precision and on its device."""
        # The array is copied, because PyTorch does not accept read-only or reversed arrays.
        rgb = torch.from_numpy(np.array(pixels, order="C")).to(self.device).permute(0, 3, 1, 2)
        values = torch.empty(rgb.shape, dtype=torch.float32, device=self.device).copy_(rgb).div_(255)
        return normalize(values, self._preprocess).to(self._original.logit_scale.dtype)


def _as_array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


# --- Decoding

Context = Float[Tensor, "B Q C"] | KeyValues

MIN_IMAGES_UNPROJECTED = 4
"""Minimum number of images with which image tokens are kept unprojected. With fewer images, the tokens are projected to
keys and values once, because reading the projection weights at each step would take longer."""


class TorchDecoder:
    """`Decoder` with both halves of the text decoder and their caches.

    The captions of one image share the keys and values of the image, or only its tokens: with few captions or few
    steps, `AbsorbedCrossAttention`, which reads the tokens, is cheaper than computing keys and values.

    Without beams, each caption has its own line of slots in the caches. With beams, all beams of an image share one
    line. Their new tokens take the next slots, side by side, and a mask selects the slots of each beam's past. When a
    beam continues another beam, only the mask changes, and no key or value moves.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: CoCa,
        image_tokens: Float[Tensor, "B Q C"],
        *,
        num_prompt: int,
        max_tokens: int,
        num_captions: int = 1,
        beams: bool = False,
        mask: Bool[Tensor, "B Q"] | None = None,
    ) -> None:
        self.model = model
        self.mask = mask
        self.position = 0
        self.num_images, self.rows_per_image = len(image_tokens), 1
        blocks = model.multimodal_decoder.blocks
        image_tokens = model.multimodal_decoder.context(image_tokens)
        num_reads = num_prompt + num_captions * (max_tokens - 1)
        with fast_products(image_tokens.device):
            self.contexts = [_context(block, image_tokens, num_captions, num_reads) for block in blocks]
        num_slots = num_reads if beams else num_prompt + max_tokens - 1
        self.caches = [KeyValueCache(num_slots) for _ in (*model.text_decoder.blocks, *blocks)]
        self.visible = np.ones((self.num_images, 1, 0), dtype=bool) if beams else None  # B K L

    @torch.inference_mode()
    def step(self, token_ids: Int[np.ndarray, "R T"]) -> Logits:
        """Read new tokens; see `Decoder`."""
        num_tokens = token_ids.shape[1]
        assert num_tokens == 1 or self.position == 0, "several tokens at once are allowed only at the beginning"
        positions = slice(self.position, self.position + num_tokens)
        self.position += num_tokens
        mask: Mask = "causal" if num_tokens > 1 else "all"
        if self.visible is not None:
            own_slots = np.eye(self.rows_per_image, dtype=bool).repeat(num_tokens, axis=1)[None]
            self.visible = np.concatenate([self.visible, own_slots.repeat(self.num_images, axis=0)], axis=2)
            if num_tokens == 1:
                mask = torch.from_numpy(self.visible[:, None]).to(self.model.device)
        with fast_products(self.model.device):
            logits = self._logits(torch.from_numpy(token_ids).to(self.model.device), positions, mask)
        return ArrayLogits(logits.numpy()) if logits.device.type == "cpu" else DeviceLogits(logits.log_softmax(dim=1))

    def _logits(self, token_ids: Int[Tensor, "R T"], positions: slice, mask: Mask) -> Float[Tensor, "R V"]:
        """Run the new tokens through the model. `mask` selects the slots that each token attends to."""
        layouts = [CachedLayout(cache, positions, mask) for cache in self.caches]
        states = self.model.decode_step(token_ids, self.contexts, layouts, self.mask)
        return at_least_fp32(self.model.multimodal_decoder.lm_head(states[:, -1]))

    @torch.inference_mode()
    def reorder(self, rows: Int[np.ndarray, " _"]) -> None:
        """Reorder the captions; see `Decoder`."""
        images, counts = np.unique(rows // self.rows_per_image, return_counts=True)
        assert (counts == counts[0]).all()
        if self.visible is not None:
            visible = self.visible.reshape(-1, self.visible.shape[2])[rows]
            self.visible = visible.reshape(len(images), counts[0], -1)
        if len(images) < self.num_images:
            kept = self._index(images)
            self.contexts = [
                KeyValues(*(projected[kept] for projected in context))
                if isinstance(context, KeyValues)
                else context[kept]
                for context in self.contexts
            ]
            self.mask = None if self.mask is None else self.mask[kept]
        if self.visible is None or len(images) < self.num_images:
            lines = self._index(rows if self.visible is None else images)
            for cache in self.caches:
                cache.select(lines)
        self.num_images, self.rows_per_image = len(images), int(counts[0])

    def _index(self, numbers: Int[np.ndarray, " N"]) -> Int[Tensor, " N"]:
        return torch.from_numpy(numbers).to(self.model.device)


def _context(block: nn.Module, image_tokens: Float[Tensor, "B Q C"], num_captions: int, num_reads: int) -> Context:
    """Return the context of a block's cross-attention: the image tokens, or their keys and values, contiguous for each
    head.
    """
    attn = cast(CrossAttention | AbsorbedCrossAttention, block.cross_attn)
    enough = len(image_tokens) >= MIN_IMAGES_UNPROJECTED
    # With one query at a time, reading memory takes most of the time. All blocks read the same image tokens, which are
    # half as large as the keys and values of a single block.
    if (
        enough
        and isinstance(attn, AbsorbedCrossAttention)
        and (num_captions == 1 or attn.is_cheaper(num_reads, image_tokens.shape[1]))
    ):
        return image_tokens
    return KeyValues(*(kept.transpose(1, 2).contiguous().transpose(1, 2) for kept in attn.project(image_tokens)))


class DeviceLogits:
    """`Logits` that stay on the device of the model. Only the values that are needed for decoding are copied to
    arrays."""

    def __init__(self, log_probs: Float[Tensor, "R V"]) -> None:
        self._log_probs = log_probs

    def largest(self, k: int) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R K"]]:
        """Return the largest log-probabilities; see `Logits`."""
        if k == 1:
            values, ids = self._log_probs.max(dim=1, keepdim=True)
        else:
            values, ids = self._log_probs.topk(min(k, self._log_probs.shape[1]))
        return _as_array(values), _as_array(ids)

    def log_probs_of(self, ids: Int[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
        """Return the log-probabilities of given tokens; see `Logits`."""
        return _as_array(self._log_probs.gather(1, self._to_device(ids)))

    def with_log_probs(
        self, rows: Int[np.ndarray, " N"], ids: Int[np.ndarray, " N"], log_probs: Float[np.ndarray, " N"]
    ) -> "DeviceLogits":
        """Replace log-probabilities; see `Logits`."""
        places, values = (self._to_device(rows), self._to_device(ids)), self._to_device(log_probs)
        return DeviceLogits(self._log_probs.index_put(places, values.type_as(self._log_probs)))

    def repeat_rows(self, count: int) -> "DeviceLogits":
        """Repeat each row; see `Logits`."""
        return DeviceLogits(self._log_probs.repeat_interleave(count, dim=0))

    def logsumexp(self, temperature: float) -> Float[np.ndarray, " R"]:
        """Return the logarithms of the sums; see `Logits`."""
        return _as_array((self._log_probs / temperature).logsumexp(dim=1))

    def sample_tokens(self, uniforms: Float[np.ndarray, " R"], temperature: float) -> Int[np.ndarray, " R"]:
        """Sample one token per row; see `Logits`."""
        probs = (self._log_probs / temperature).softmax(dim=1)
        if probs.device.type == "mps":  # MPS has no fp64
            probs = probs.cpu()
        cumulative = probs.cumsum(dim=1, dtype=torch.float64)
        sought = torch.from_numpy(uniforms).to(probs.device)[:, None] * cumulative[:, -1:]
        passed = torch.searchsorted(cumulative, sought, right=True)[:, 0]
        return _as_array(passed.clamp(max=probs.shape[1] - 1))

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._log_probs.device)
