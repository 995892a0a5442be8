"""Records what open_clip 3.3.0 makes of the cases of `open_clip_cases.py`, for tests that run without it.

.venv-peers/bin/python tests/open_clip/checkpoints/record_open_clip.py
"""

import json
from pathlib import Path

import torch
from open_clip.coca_model import CoCa
from open_clip.transform import image_transform
from open_clip_cases import (
    CASES,
    GRADIENTS_OF,
    SHAPES_OF_IMAGES,
    TEXTS,
    coefficients,
    draw_captions,
    draw_images,
    draw_weights,
    noise_image,
)
from safetensors.torch import save_file

import open_clip

FOLDER = Path(__file__).parent / "recorded"


def record(name: str) -> dict[str, torch.Tensor]:
    """Outputs of a model, and for one of them gradients of pixels and weights, in fp64."""
    case = CASES[name]
    model = CoCa(**case).double().eval()
    model.load_state_dict(draw_weights({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}))
    images, captions = draw_images(case).requires_grad_(), draw_captions(case)
    text = torch.zeros(len(captions), case["text_cfg"]["context_length"], dtype=torch.long)
    for row, caption in zip(text, captions, strict=True):
        row[: len(caption)] = torch.tensor(caption)
    output = model(images, text)
    # Of the logits those that have a label: the others are predicted from the end token and from padding.
    logits = torch.cat([rows[: len(c) - 1] for rows, c in zip(output["logits"], captions, strict=True)])
    found = {
        "image_embedding": output["image_features"],
        "text_embedding": output["text_features"],
        "logits": logits,
    }
    recorded = {key: tensor.detach().contiguous() for key, tensor in found.items()}
    if name == GRADIENTS_OF:
        sum((tensor * coefficients(key, tensor)).sum() for key, tensor in found.items()).backward()
        recorded["gradient of pixels"] = images.grad
        recorded |= {f"gradient of {key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    return recorded


def main() -> None:
    """Write all of it."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    names = {}
    for name, case in CASES.items():
        save_file(record(name), FOLDER / f"{name.replace(' ', '-')}.safetensors")
        names[name] = {key: list(tensor.shape) for key, tensor in CoCa(**case).state_dict().items()}
    transform = image_transform(32, is_train=False)
    pixels = {f"{w}x{h}": transform(noise_image((w, h))) for w, h in SHAPES_OF_IMAGES}
    save_file(pixels, FOLDER / "pixels.safetensors")
    tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=76)
    ids = {text: tokenize([text])[0].tolist() for text in TEXTS}
    content = {"open_clip": open_clip.__version__, "tensors": names, "token_ids": ids}
    (FOLDER / "names.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
