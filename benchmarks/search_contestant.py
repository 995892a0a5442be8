"""The way of open_clip in `search_index.py`: embed all pictures, keep the matrix, multiply, sort.

Reads a request a line from standard input, as JSON, and answers each with the seconds that it took: paths to `embed`
or to `caption`, or a `query` in words. The model is a CoCa of open_clip with random weights and the size of the model
that ships: as many patches, layers, widths, words and tokens of context.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.coca_model import CoCa
from PIL import Image

BATCH = 64
CAPTION_TOKENS = 3
"""The captions of the model that ships have 3.3 on icons, with their end."""
TOP = 20
TEXT = {"context_length": 48, "vocab_size": 4096, "width": 128, "heads": 4, "layers": 2}
VISION = {"image_size": 64, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4}
POOLER = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 16}


class OpenClip:
    """A library by hand: the paths, and a matrix of their embeddings."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        text = {**TEXT, "embed_cls": True, "output_tokens": True}
        self.model = CoCa(128, TEXT, text, {**VISION, **POOLER, "output_tokens": True}).eval()
        self.transform = open_clip.image_transform(VISION["image_size"], is_train=False)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
        self.paths: list[str] = []
        self.matrix = torch.empty(0, 128)

    def embed(self, paths: list[str]) -> None:
        """Add pictures to the library."""
        rows = [self.matrix]
        for start in range(0, len(paths), BATCH):
            pixels = torch.stack([self.transform(Image.open(path)) for path in paths[start : start + BATCH]])
            rows.append(self.model.encode_image(pixels, normalize=True))
        self.matrix = torch.cat(rows)
        self.paths += paths

    def caption(self, paths: list[str]) -> None:
        """Greedy captions of `CAPTION_TOKENS` tokens: random weights do not know when to end."""
        for start in range(0, len(paths), BATCH):
            pixels = torch.stack([self.transform(Image.open(path)) for path in paths[start : start + BATCH]])
            special = {"sot_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
            length = {"seq_len": CAPTION_TOKENS + 1, "min_seq_len": CAPTION_TOKENS}
            self.model.generate(pixels, generation_type="top_k", top_k=1, **length, **special)

    def query(self, text: str) -> list[str]:
        """The nearest pictures. Its tokenizer has more words than the model: their numbers are brought into range."""
        tokens = self.tokenizer([text]) % TEXT["vocab_size"]
        scores = self.matrix @ self.model.encode_text(tokens, normalize=True)[0]
        return [self.paths[place] for place in np.argsort(-scores.numpy())[:TOP]]


def answer(library: OpenClip, request: dict[str, Any]) -> dict[str, float]:
    """Do what is asked."""
    began, cpu_began = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        if "embed" in request:
            library.embed(request["embed"])
        elif "caption" in request:
            library.caption(request["caption"])
        else:
            assert len(library.query(request["query"])) == TOP
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    library = OpenClip()
    parameters = sum(parameter.numel() for parameter in library.model.parameters())
    about = {"version": open_clip.__version__, "parameters": parameters}
    print(json.dumps(about), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
