"""The README.md of a folder of graphs: what the files are, and a program that uses them. A test runs it."""

from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.checkpoint_folder import QUANTIZED_WEIGHTS, WEIGHTS

_OPEN = {
    "as_stored": 'picture = Image.open(sys.argv[1]).convert("RGB")',
    "upright_on_white": """\
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGBA")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")""",
}
_SQUARE = {
    "crop_then_resize": """\
side = min(picture.size)
left, top = (round((length - side) / 2) for length in picture.size)
picture = picture.crop((left, top, left + side, top + side)).resize(({size}, {size}), Image.Resampling.BICUBIC)""",
    "resize_then_crop": """\
width, height = (int({size} * length / min(picture.size)) for length in picture.size)
left, top = round((width - {size}) / 2), round((height - {size}) / 2)
picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + {size}, top + {size}))""",
}

_PROGRAM = """\
import sys
import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps
from tokenizers import Tokenizer

image, text, step = (InferenceSession(f"{{name}}.onnx") for name in ("image", "text", "step"))
tokenizer = Tokenizer.from_file("tokenizer.json")

{opened}
{square}
embedding, *seen = image.run(None, {{"pixels": np.asarray(picture)[None]}})
inputs = dict(zip([output.name for output in image.get_outputs()][1:], seen))
past = {{i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in step.get_inputs() if "past" in i.name}}

caption = [{bos_id}]  # the begin token, and the words that the caption is to begin with, if any
new = caption
while len(caption) < {longest} and caption[-1] != {eos_id}:
    logits, *present = step.run(None, {{"token_ids": np.array([new]), **inputs, **past}})
    past = dict(zip(past, present))
    new = [int(logits[0, -1].argmax())]
    caption += new
print(tokenizer.decode(caption).strip())

row = np.array([[{bos_id}, *tokenizer.encode("a red heart", add_special_tokens=False).ids, {eos_id}, 0]])
(text_embedding,) = text.run(None, {{"token_ids": row, "lengths": np.array([row.shape[1]])}})
print((embedding @ text_embedding.T).item())
"""

_PAGE = """\
# {preset}, {precision}, for ONNX Runtime

An image-text model that captions images, and embeds images and texts as vectors that can be compared. It was written by
`grr-coca export onnx`, and needs no PyTorch. `pip install onnxruntime pillow tokenizers`, then, in this folder:

```python
{program}```

It prints a caption of the image at the path `sys.argv[1]`, and the cosine between the image and "a red heart".

| file | what |
|---|---|
| `image.onnx` | `pixels` (B {size} {size} 3, bytes) to `image_embedding`, and to `cross_*`, which captions attend to |
| `text.onnx` | `token_ids` (B T, padded with 0) and `lengths` (B) to `text_embedding` |
| `step.onnx` | `token_ids` (R T), `cross_*` and `past_*` to `logits` (R T V) and `present_*`, the next `past_*` |
| `{weights}` | the weights of all three; keep it beside them |
| `tokenizer.json` | for the package tokenizers |
| `preprocess.json` | how an image is opened, cut and resized; `image.onnx` normalizes the pixels itself |
| `config.json` | the architecture |
| `manifest.json` | checksums, precision, versions, and the numbers that the program above holds |

B images or texts, T tokens and R captions may have any number. A text is `[BOS] words [EOS]` and one 0, the place of
[CLS]; `lengths` counts all of them, at most {context_length}. With R = K · B rows, each image has K neighbouring
captions, as for beams, and its keys and values are not copied. `past_*` of length 0 begin a caption.
{notes}"""

_INT8 = """
The weights are int8, by channel, and the inputs of each product are quantized when it is computed. They share one scale
in a batch, so results depend slightly on what else is in the batch. Of 895 captions by the model `icons`, 97 % are the
same in batches of 1 and of 64, and 96 % are those of fp32; cosines of the embeddings are at least 0.998.
"""
_FTFY = """
Before a text is encoded, clean it as open_clip does, with the package ftfy:
`html.unescape(html.unescape(ftfy.fix_text(text))).strip()`.
"""


def readme(checkpoint: Checkpoint, precision: str) -> str:
    """The page for a model."""
    preprocess, tokenizer = checkpoint.preprocess, checkpoint.tokenizer
    context_length = checkpoint.config.text_decoder.context_length
    program = _PROGRAM.format(
        opened=_OPEN[preprocess.opening],
        square=_SQUARE[preprocess.order].format(size=preprocess.image_size),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        longest=context_length - 2,
    )
    return _PAGE.format(
        preset=checkpoint.preset,
        precision=precision,
        program=program,
        size=preprocess.image_size,
        context_length=context_length,
        weights=QUANTIZED_WEIGHTS if precision == "int8" else WEIGHTS,
        notes=(_INT8 if precision == "int8" else "") + (_FTFY if tokenizer.cleaning == "ftfy" else ""),
    )
