"""The way of open_clip in `search_index.py`: embed all pictures, keep the matrix, multiply, sort.

It is asked for paths to `embed` or to `caption`, or a `query` in words, and answers with the seconds that it took. The
model is a CoCa of open_clip with random weights and the size of the model
that ships: as many patches, layers, widths, words and tokens of context.
"""

import time
from collections.abc import Callable

import numpy as np
import open_clip
import torch
from open_clip.coca_model import CoCa
from PIL import Image
from workers import serve

BATCH = 64
CAPTION_TOKENS = 3
"""The captions of the model that ships have 3.3 on icons, with their end."""
TOP = 20
TEXT = {"context_length": 48, "vocab_size": 4096, "width": 128, "heads": 4, "layers": 2}
VISION = {"image_size": 64, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4}
POOLER = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 16}


class OpenClip:
    """A library by hand: the paths, and a matrix of their embeddings."""

    def __init__(self, _: object) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        text = {**TEXT, "embed_cls": True, "output_tokens": True}
        self.model = CoCa(128, TEXT, text, {**VISION, **POOLER, "output_tokens": True}).eval()
        self.transform = open_clip.image_transform(VISION["image_size"], is_train=False)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
        self.paths: list[str] = []
        self.matrix = torch.empty(0, 128)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.about = {"version": open_clip.__version__, "parameters": parameters}

    def embed(self, paths: list[str]) -> dict[str, float]:
        """Add pictures to the library."""
        return self._timed(self._embed, paths)

    def caption(self, paths: list[str]) -> dict[str, float]:
        """Greedy captions of `CAPTION_TOKENS` tokens: random weights do not know when to end."""
        return self._timed(self._caption, paths)

    def query(self, text: str) -> dict[str, float]:
        """The nearest pictures. Its tokenizer has more words than the model: their numbers are brought into range."""
        return self._timed(self._query, text)

    def _embed(self, paths: list[str]) -> None:
        rows = [self.matrix]
        for start in range(0, len(paths), BATCH):
            pixels = torch.stack([self.transform(Image.open(path)) for path in paths[start : start + BATCH]])
            rows.append(self.model.encode_image(pixels, normalize=True))
        self.matrix = torch.cat(rows)
        self.paths += paths

    def _caption(self, paths: list[str]) -> None:
        for start in range(0, len(paths), BATCH):
            pixels = torch.stack([self.transform(Image.open(path)) for path in paths[start : start + BATCH]])
            special = {"sot_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
            length = {"seq_len": CAPTION_TOKENS + 1, "min_seq_len": CAPTION_TOKENS}
            self.model.generate(pixels, generation_type="top_k", top_k=1, **length, **special)

    def _query(self, text: str) -> None:
        tokens = self.tokenizer([text]) % TEXT["vocab_size"]
        scores = self.matrix @ self.model.encode_text(tokens, normalize=True)[0]
        found = [self.paths[place] for place in np.argsort(-scores.numpy())[:TOP]]
        assert len(found) == TOP

    def _timed(self, work: Callable[..., object], argument: object) -> dict[str, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            work(argument)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}


if __name__ == "__main__":
    serve(OpenClip, ("embed", "caption", "query"))
