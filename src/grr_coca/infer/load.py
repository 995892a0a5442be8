"""Load models by name.

A name is a folder, a bundled or published model, or a model on the Hugging Face hub. A model with ONNX
graphs runs in ONNX Runtime, on the CPU, if ONNX Runtime was never slower than PyTorch on a CPU for models of this width
(see `docs/deploy.md`), or if PyTorch is not installed. Such a model does not use a GPU unless a GPU is requested, so
that it yields the same results on machines with and without a GPU. All other models run in PyTorch. The rule is fixed;
nothing is measured at run time.
"""

import logging
import platform
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from grr_coca.common import plugins
from grr_coca.common.errors import UserError, first_line, pip_install_command, require_extra, suggest_name
from grr_coca.common.files import MANIFEST, read_json
from grr_coca.common.threads import set_passive_wait_policy
from grr_coca.model.checkpoint_files import (
    HUB_ID,
    MODEL_FILES,
    base_fingerprint,
    bundled_folder,
    bundled_names,
    find_checkpoint,
    find_model,
    has_graphs,
    is_adapted,
    is_quantized,
    read_files,
)
from grr_coca.model.config import CoCaConfig

if TYPE_CHECKING:
    import torch

    from grr_coca.infer.engine.base import Engine, EngineName
    from grr_coca.infer.image_text_model import ImageTextModel

log = logging.getLogger(__name__)


class ModelProvider(Protocol):
    """Provider of named models from another package, registered in the entry-point group `grr_coca.models`."""

    @property
    def names(self) -> Collection[str]:
        """Names of the models, to be listed in messages."""
        ...

    @property
    def heading(self) -> str:
        """Heading under which these models are listed."""
        ...

    def owns(self, name: str) -> bool:
        """Return whether a name, with or without `@revision`, belongs to a model of this provider."""
        ...

    def locate(self, name: str) -> Path:
        """Return the checkpoint folder of a model, and download the model when it is first used.

        Raises:
            UserError: If the model cannot be downloaded, or is corrupt.
        """
        ...

    def listed(self, engine_of: Callable[[Path], str]) -> Mapping[str, tuple[Mapping[str, object], str]]:
        """Map the name of each model to its description, as a JSON object and as lines of text, without downloading
        anything.

        Args:
            engine_of: Function that returns the name of the engine that would run the model in a folder on this
                machine.
        """
        ...


def load(name: str | Path, device: "str | torch.device | None" = None, engine: str = "auto") -> "ImageTextModel":
    """Load a model for use.

    Args:
        name: A checkpoint or run folder, a folder of ONNX graphs, the name of a bundled model such as `icons`, or
            `owner/name` on the Hugging Face hub.
        device: Device to run on. By default, ONNX Runtime uses the CPU, and PyTorch uses CUDA if available, else
            Apple's MPS, else the CPU.
        engine: `onnx`, `torch`, or `auto`; see `grr_coca.infer.load`.

    Raises:
        UserError: If the model does not exist, a file is missing or corrupt, the device does not exist, or the engine
            cannot run this model on this machine.
    """
    set_passive_wait_policy()
    folder = locate_checkpoint(name)
    files = read_files(folder)
    if choose_engine(folder, files.config, engine, device) == "onnx":
        # lazy import, like that of PyTorch below, because only one of the two is needed
        from grr_coca.infer.engine.onnx import OnnxEngine

        computing: Engine = OnnxEngine(folder)
    else:
        from grr_coca.infer.engine.torch import TorchEngine
        from grr_coca.model.checkpoint import with_weights

        files = checkpoint = with_weights(files, folder, choose_device(device))
        computing = TorchEngine(checkpoint.model, checkpoint.preprocess)
    if files.encoder is not None:
        from grr_coca.infer.engine.frozen import with_frozen_encoder  # lazy import, because few models take features

        files, computing = with_frozen_encoder(files, computing, folder)
    if is_adapted(folder):
        from grr_coca.infer.adapted.adapted_model import AdaptedModel  # lazy import, because few models are adapted

        return AdaptedModel(files, computing, folder, load)
    from grr_coca.infer.image_text_model import ImageTextModel  # lazy import: it imports NumPy and Pillow

    return ImageTextModel(files, computing, folder)


_HUB_NAME = re.compile(rf"(?P<id>{HUB_ID.pattern})(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
"""Pattern of `owner/name`, or of `owner/name@revision`, where the revision is a branch, a tag or a commit."""


def locate_checkpoint(named: str | Path) -> Path:
    """Return the folder with the files of a checkpoint, without loading weights.

    A folder with a checkpoint takes precedence, with a warning, over a bundled or published model of the same name.
    Both take precedence over models on the Hugging Face hub, which are downloaded. A published model is downloaded and
    imported when it is first used.

    Args:
        named: A checkpoint or run folder, a folder of ONNX graphs, the name of a bundled or published model, or
            `owner/name` on the Hugging Face hub. `@revision` may follow the name of a published model or of a model on
            the hub.

    Raises:
        UserError: If the checkpoint does not exist, must first be imported, or cannot be downloaded. For an unknown
            name, the message suggests the most similar name.
    """
    path, name = Path(named), str(named)
    scheme, colon, _ = name.partition(":")
    if colon and not path.exists() and plugins.find("grr_coca.loaders", scheme) is not None:
        raise UserError(f"{name}: convert this checkpoint first: grr-coca import {name.replace(':', ' ', 1)} --out DIR")
    bundled = bundled_folder(name)
    provider = _provider_of(name) if bundled is None and path.name == name else None
    if bundled is not None or provider is not None:
        if not _holds_checkpoint(path):
            return bundled if provider is None else provider.locate(name)  # type: ignore[return-value]
        kind = "bundled" if bundled is not None else "published"
        log.warning("%s: this folder is used, not the %s model of the same name", path, kind)
    if path.exists() or len(Path(name.partition("@")[0]).parts) > 2:
        return find_model(path)
    if (before := Path(name.partition("@")[0])).is_dir():
        raise UserError(f"{name}: only models on the hub have revisions, but {before} is a local folder; pass {before}")
    if _HUB_NAME.fullmatch(name):
        return find_model(_fetch(name))
    published = [known for provider in plugins.values("grr_coca.models") for known in provider.names]
    raise UserError(f"{name}: no folder or model has this name; {suggest_name(name, [*bundled_names(), *published])}")


def require_input(folder: Path, arguments: Sequence[str], *, as_pairs: bool = False) -> None:
    """Check that a model takes the kind of input that the arguments specify: images or features.

    Args:
        folder: Folder of the model. The model is not loaded.
        arguments: Arguments for images or pairs.
        as_pairs: Whether the arguments are opened as pairs with their stored features. If False, they are opened as
            images, in place of which features may be given.

    Raises:
        UserError: If an argument has features of another encoder or of another kind (all tokens or their mean),
            features instead of images, or images instead of features.
    """
    from grr_coca.data.feature_image import HEADER  # lazy import, because it needs NumPy

    if is_adapted(folder) or any(Path(argument, HEADER).is_file() for argument in arguments):
        from grr_coca.infer.adapted.beside import require_same_input  # lazy import, because most models take images

        require_same_input(folder, arguments, as_pairs=as_pairs)


def is_on_hub(name: str) -> bool:
    """Return whether `locate_checkpoint` would search for this name on the Hugging Face hub."""
    is_known = bundled_folder(name) is not None or _provider_of(name) is not None
    return not is_known and not Path(name).exists() and _HUB_NAME.fullmatch(name) is not None


def _provider_of(name: str) -> ModelProvider | None:
    return next((provider for provider in plugins.values("grr_coca.models") if provider.owns(name)), None)


def _fetch(hub_id: str) -> Path:
    """Download a checkpoint from the hub by a name that matches `_HUB_NAME`, and return its local folder.

    Only model files are downloaded: safetensors, JSON and ONNX graphs, which cannot run code.

    Raises:
        UserError: If the repository cannot be downloaded.
    """
    require_extra("hub", f"{hub_id}: not a folder; downloading it from the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, at = hub_id.partition("@")
    revision = at or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*MODEL_FILES, MANIFEST]))
    except HFValidationError as error:
        raise UserError(
            f"{hub_id}: not a folder, and not a valid name on the Hugging Face hub; use a folder or OWNER/NAME"
        ) from error
    except Exception as error:  # without a connection, the type of the error depends on the version of huggingface_hub
        cause = first_line(error)
        raise UserError(
            f"{hub_id}: not a folder, and cannot be downloaded from the Hugging Face hub ({cause}); check "
            "the name and the connection"
        ) from error


def _holds_checkpoint(path: Path) -> bool:
    try:
        find_model(path)
    except UserError:
        return False
    return True


EngineChoice = Literal["auto", "onnx", "torch"]
"""Name of an engine, or `auto` to choose one by a fixed rule."""
ENGINE_TITLES = {"onnx": "ONNX Runtime", "torch": "PyTorch"}
MAX_ONNX_WIDTH = 128
"""Largest transformer width at which ONNX Runtime was never slower than PyTorch on a CPU, at any batch size
(`benchmarks/results/engines.json`)."""


def choose_engine(
    folder: Path, config: CoCaConfig, engine: str = "auto", device: "str | torch.device | None" = None
) -> "EngineName":
    """Choose the engine that runs the model in a folder, and return its name.

    Args:
        folder: Checkpoint, with or without ONNX graphs, or an int8 model.
        config: Config of the model.
        engine: `onnx`, `torch`, or `auto` to choose one by the rule in the module's docstring.
        device: Device to run on. By default, ONNX Runtime uses the CPU, and PyTorch uses CUDA if available, else
            Apple's MPS, else the CPU.

    Raises:
        UserError: If the engine does not exist, cannot run this model, or does not support this device, if a package
            is missing, or if the graphs belong to another checkpoint.
    """
    if engine not in get_args(EngineChoice):
        raise UserError(f"unknown engine '{engine}'; {suggest_name(engine, get_args(EngineChoice))}")
    if engine == "torch":
        return _require_torch(folder, "the engine 'torch'")
    if engine == "onnx" or is_quantized(folder):
        _require_cpu(folder, device)
        return _require_onnx(folder)
    if device is not None and str(device) != "cpu":
        return _require_torch(folder, f"the device '{device}'")
    if not has_graphs(folder):
        return _require_torch(folder, f"{folder}: has no ONNX graphs (grr-coca export onnx writes them), so it")
    if find_spec("torch") is None:
        return _require_onnx(folder)
    is_narrow = max(transformer.embed_dim for transformer in config.transformers) <= MAX_ONNX_WIDTH
    return _require_onnx(folder) if is_narrow else "torch"


def choose_device(device: "str | torch.device | None") -> "torch.device":
    """Return the PyTorch device with this name. The default is CUDA if available, else Apple's MPS, else the CPU.

    Raises:
        UserError: If the device does not exist or cannot be used.
    """
    import torch  # lazy import, because ONNX Runtime does not need it

    if device is None:
        return torch.device(best_device())
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # this fails for "meta", which has no data
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"device '{device}' cannot be used here; use '{best_device()}', the best available device"
        ) from error
    return chosen


def best_device() -> str:
    """Return the name of the best available PyTorch device.

    PyTorch is imported only if this machine may have a GPU, because the import takes seconds.
    """
    if not (sys.modules.get("torch") or _may_have_gpu()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _may_have_gpu() -> bool:
    """Return whether this machine may have a GPU that PyTorch supports.

    On Linux, the drivers of CUDA and ROCm are recognized by their device files. On a Mac, the result is true only with
    an Apple processor, and on all other systems it is always true.
    """
    if sys.platform == "linux":
        return any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg", "kfd"))
    return sys.platform != "darwin" or platform.machine() == "arm64"


def _require_onnx(folder: Path) -> "EngineName":
    if find_spec("onnxruntime") is None:
        raise UserError(f"the required package onnxruntime is missing; run: {pip_install_command('onnxruntime')}")
    if not has_graphs(folder):
        raise UserError(f"{folder}: no ONNX graphs; write them with: grr-coca export onnx -c {folder} --out FOLDER")
    # Int8 graphs refer to their source checkpoint, which may be absent.
    if not is_quantized(folder) and read_json(folder / MANIFEST).get("checkpoint") != base_fingerprint(folder):
        raise UserError(
            f"{folder}: the ONNX graphs belong to another checkpoint; write them again with: grr-coca export onnx "
            f"-c {folder} --out FOLDER"
        )
    return "onnx"


def _require_torch(folder: Path, what: str) -> "EngineName":
    require_extra("torch", what)
    find_checkpoint(folder)
    return "torch"


def _require_cpu(folder: Path, device: "str | torch.device | None") -> None:
    if device is not None and str(device) != "cpu":
        model = "a model in int8" if is_quantized(folder) else "the engine 'onnx'"
        raise UserError(f"device '{device}': {model} runs only on the CPU; omit the device")
