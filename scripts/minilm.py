"""all-MiniLM-L6-v2, a sentence encoder: texts to embeddings of unit length, from its published weights.

It is BERT (arXiv 1810.04805) with 6 layers, distilled (MiniLM, arXiv 2002.10957) and fine-tuned on pairs of sentences
by sentence-transformers. The forward pass is written out here, so neither transformers nor sentence-transformers is
needed. `tests/icons/test_text_teacher.py` checks it against PyTorch's own layers, and against embeddings that
transformers computed.

Shapes: B texts of equal length, T tokens, D width, H heads.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import tokenizers
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load
from torch import Tensor

MAX_TOKENS = 256
"""sentence-transformers cuts longer texts for this model."""

BATCH_TOKENS = 4096
"""Tokens of a batch. Larger ones are not faster on a CPU."""


@dataclass(frozen=True)
class MiniLM:
    """The encoder. `weights`: by their names in the published file."""

    weights: Mapping[str, Tensor]
    tokenizer: tokenizers.Tokenizer
    num_layers: int
    num_heads: int
    layer_norm_eps: float

    @classmethod
    def from_files(cls, weights: bytes, config: bytes, tokenizer: bytes) -> "MiniLM":
        """Return the encoder from the content of `model.safetensors`, `config.json` and `tokenizer.json`."""
        settings = json.loads(config)
        backend = tokenizers.Tokenizer.from_buffer(tokenizer)
        backend.no_padding()
        backend.enable_truncation(MAX_TOKENS)
        return cls(
            weights=load(weights),
            tokenizer=backend,
            num_layers=settings["num_hidden_layers"],
            num_heads=settings["num_attention_heads"],
            layer_norm_eps=settings["layer_norm_eps"],
        )

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], on_batch: Callable[[int], None]) -> Float[Tensor, "N D"]:
        """Embeddings of unit length. Only texts of equal length share a batch, so there is no padding.

        Args:
            texts: N texts.
            on_batch: called with the number of finished texts.
        """
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            by_length.setdefault(len(row), []).append(number)
        width = self.weights["embeddings.word_embeddings.weight"].shape[1]
        found, done = torch.empty(len(rows), width), 0
        for length, numbers in sorted(by_length.items()):
            size = max(1, BATCH_TOKENS // length)
            for first in range(0, len(numbers), size):
                part = numbers[first : first + size]
                found[part] = self._embed(torch.tensor([rows[number] for number in part]))
                done += len(part)
                on_batch(done)
        return found

    def _embed(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][token_ids]  # B T D
        x = x + w["embeddings.position_embeddings.weight"][: token_ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(self.num_layers):
            layer = f"encoder.layer.{number}"
            x = self._norm(x + self._attention(x, f"{layer}.attention"), f"{layer}.attention.output.LayerNorm")
            hidden = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return F.normalize(x.mean(dim=1), dim=1)

    def _attention(self, x: Float[Tensor, "B T D"], name: str) -> Float[Tensor, "B T D"]:
        query, key, value = (
            self._linear(x, f"{name}.self.{part}").unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # B H T D/H
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # B T D
        return self._linear(mixed, f"{name}.output.dense")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.layer_norm_eps)
