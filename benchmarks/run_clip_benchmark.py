"""Runs our checkpoints in clip_benchmark (`pip install clip-benchmark webdataset`).

    python benchmarks/run_clip_benchmark.py eval --pretrained runs/mine --dataset wds/NAME --dataset_root FOLDER \\
        --task zeroshot_classification --output result.json

All options of clip_benchmark work. It has no public way to register a model, so this script adds one to its table of
model types, and then calls its command line.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from grr_coca.cli import exit_code
from grr_coca.common.errors import UserError
from grr_coca.data.batch import pad_rows
from grr_coca.data.images import open_rgb
from grr_coca.data.tokenizer import Tokenizer
from grr_coca.model.checkpoint import Checkpoint, from_pretrained
from grr_coca.model.coca import CoCa

MODEL_TYPE = "grr_coca"
Transform = Callable[[Image.Image], Tensor]
Tokenize = Callable[[Sequence[str]], Tensor]


class ClipModel(nn.Module):
    """A CoCa with the two methods of CLIP. Texts are rows of ids without lengths: the end token marks the length."""

    def __init__(self, coca: CoCa, eos_id: int) -> None:
        super().__init__()
        self.coca = coca
        self.eos_id = eos_id

    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length."""
        return self.coca.encode_image(images).embedding

    def encode_text(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length."""
        lengths = (token_ids == self.eos_id).int().argmax(dim=1) + 2  # [EOS] and the [CLS] slot behind it
        return self.coca.encode_text(token_ids[:, : int(lengths.max())], lengths)


def load_grr_coca(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: str = "cpu"
) -> tuple[ClipModel, Transform, Tokenize]:
    """Model, transform and tokenizer in clip_benchmark's convention.

    Args:
        model_name: not used here; clip_benchmark records it.
        pretrained: checkpoint or run folder.
        cache_dir: not used, because nothing is downloaded.
        device: device of the model.

    Raises:
        UserError: there is no checkpoint.
    """
    del model_name, cache_dir
    checkpoint = from_pretrained(Path(pretrained), device)
    return (
        ClipModel(checkpoint.model, checkpoint.tokenizer.eos_id).eval(),
        make_transform(checkpoint),
        make_tokenize(checkpoint.tokenizer, checkpoint.config.text_decoder.context_length),
    )


def make_transform(checkpoint: Checkpoint) -> Transform:
    """The transform from an image of any mode to the model's input, as in training."""

    def transform(image: Image.Image) -> Tensor:
        return checkpoint.pixels(open_rgb(image, checkpoint.preprocess.opening))

    return transform


def make_tokenize(tokenizer: Tokenizer, context_length: int) -> Tokenize:
    """The function from texts to rows of ids, B × T, padded to the longest text."""

    def tokenize(texts: Sequence[str]) -> Tensor:
        return pad_rows([tokenizer.encode_row(text, context_length) for text in texts])[0]

    return tokenize


def register() -> None:
    """Add the model type to clip_benchmark's table.

    Raises:
        UserError: clip_benchmark is not installed.
    """
    models = _clip_benchmark_models()
    models.TYPE2FUNC[MODEL_TYPE] = load_grr_coca
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def repair_accuracy() -> None:
    """Replace clip_benchmark's top-k accuracy. It converts an array of one element to a float, which NumPy 2.4
    refuses."""
    from clip_benchmark.metrics import zeroshot_classification

    zeroshot_classification.accuracy = top_k_accuracy


def top_k_accuracy(output: Float[Tensor, "N C"], target: Int[Tensor, " N"], topk: Sequence[int] = (1,)) -> list[float]:
    """For each k, the share of rows whose target is among the k largest outputs."""
    ranked = output.topk(max(topk), dim=1).indices == target[:, None]
    return [ranked[:, :k].any(dim=1).double().mean().item() for k in topk]


def main(arguments: Sequence[str]) -> None:
    """clip_benchmark's command line. Its default model type is ours."""
    register()
    repair_accuracy()
    from clip_benchmark import cli

    defaults = {"--model_type": MODEL_TYPE, "--model": MODEL_TYPE} if arguments[:1] == ["eval"] else {}
    given = {argument.partition("=")[0] for argument in arguments}
    missing = [word for flag, value in defaults.items() if flag not in given for word in (flag, value)]
    before = sys.argv
    sys.argv = ["clip_benchmark", *arguments, *missing]
    try:
        cli.main()
    finally:
        sys.argv = before


def _clip_benchmark_models() -> Any:
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise UserError(f"clip_benchmark needs: pip install clip-benchmark webdataset ({error})") from error
    return models


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
