"""Text teacher: a text model whose embeddings of the captions are added to each training batch.

The teacher does not run during training. `scripts/text_teacher.py` computes its embeddings once, and writes a folder:

| file | content |
|---|---|
| `captions.txt` | the captions of the training pairs in lower case, one per line |
| `embeddings.safetensors` | `captions`: an embedding of unit length for each line, in fp16 |
| `manifest.json` | sizes and checksums |

A folder that was written by commit f3ecb185 also contains other texts, which are ignored.

Shapes: N captions, B pairs, K width of the teacher's embeddings.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from grr_coca.common.errors import UserError
from grr_coca.common.files import MANIFEST, atomic_folder, file_sha256, verify_folder
from grr_coca.data.batch import Batch
from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.tokenizer import caption_id, clean_caption
from grr_coca.model.checkpoint import load_tensors, save_tensors

CAPTIONS, EMBEDDINGS = "captions.txt", "embeddings.safetensors"
_CAPTIONS_TENSOR = "captions"
_FIX = "write the folder again with `python scripts/text_teacher.py RECIPE`"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Embeddings that a teacher has computed, read from its folder.

    Attributes:
        folder: The teacher's folder.
        ids: Ids of the captions (see `caption_id`), sorted.
        rows: For each id, the row of its caption in `embeddings`.
        embeddings: Embeddings of unit length, in fp16.
    """

    folder: Path
    ids: Int[np.ndarray, " N"]
    rows: Int[np.ndarray, " N"]
    embeddings: Float[Tensor, "N K"]

    @classmethod
    def read(cls, path: str) -> "Teacher":
        """Read and check a teacher's folder.

        Raises:
            UserError: If the folder or a file is missing or corrupt, or captions and embeddings do not match.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(
                f"{folder}: teacher: folder not found; create it with `python scripts/text_teacher.py RECIPE`"
            )
        verify_folder(folder)
        captions = _read_lines(folder / CAPTIONS)
        embeddings = _read_embeddings(folder / EMBEDDINGS, len(captions))
        ids = np.array([caption_id(caption) for caption in captions], np.int64)
        rows = ids.argsort()
        return cls(folder=folder, ids=ids[rows], rows=rows, embeddings=embeddings)

    @property
    def digest(self) -> str:
        """Digest of the folder's manifest, by which a resumed run recognizes its teacher."""
        return file_sha256(self.folder / MANIFEST)[:32]

    def __len__(self) -> int:
        return len(self.ids)

    def require_captions(self, pairs: PairSource) -> None:
        """Check that the teacher has embeddings of all captions of the given pairs.

        Raises:
            UserError: If embeddings are missing. The message contains the number of captions without an embedding, and
                the first of them.
        """
        captions = training_captions(pairs)
        is_known = self._find(np.array([caption_id(caption) for caption in captions], np.int64))[1]
        unknown = [captions[number] for number in np.flatnonzero(~is_known)]
        if unknown:
            raise UserError(
                f"{self.folder}: teacher: no embeddings of {len(unknown):,} of the {len(captions):,} training "
                f"captions, such as {unknown[0]!r}, because this teacher belongs to other pairs; create a teacher for "
                "these pairs with `python scripts/text_teacher.py RECIPE`"
            )

    def teach(self, batch: Batch) -> Batch:
        """Return a copy of the batch with the teacher's embeddings (B K, float32) of its captions.

        Raises:
            UserError: If a caption has no embedding.
        """
        positions, is_known = self._find(batch.caption_ids.numpy())
        if not is_known.all():
            raise UserError(
                f"{self.folder}: teacher: the embedding of a training caption is missing, because the "
                "pairs have changed; create a new teacher with `python scripts/text_teacher.py RECIPE`"
            )
        return replace(batch, teacher=self.embeddings[self.rows[positions]].float())

    def _find(self, ids: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " B"], np.ndarray]:
        """Return the position of each id in `self.ids`, and whether it exists. The position of an unknown id is
        arbitrary.
        """
        positions = np.searchsorted(self.ids, ids).clip(max=max(len(self.ids) - 1, 0))
        return positions, self.ids[positions] == ids if len(self.ids) else np.zeros(len(ids), bool)


def training_captions(pairs: PairSource) -> list[str]:
    """Return all distinct captions that training may use, cleaned and in lower case, without reading images.

    Bad captions are omitted.
    """
    found: dict[str, None] = {}
    for index in range(len(pairs)):
        try:
            captions = pairs.captions(index)
        except BadSample:
            continue
        for caption in captions:  # a pair may have both valid and bad captions
            with suppress(BadSample):
                found[clean_caption(caption, "").lower()] = None
    return list(found)


def write_teacher(
    folder: Path, captions: Sequence[str], embeddings: Float[Tensor, "N K"], facts: Mapping[str, object] | None = None
) -> None:
    """Write a teacher's folder atomically.

    Args:
        folder: Target folder.
        captions: The captions of the training pairs, in lower case.
        embeddings: Embeddings of unit length, one per caption. They are stored in fp16.
        facts: Additional content of the manifest, such as the teacher's name.

    Raises:
        UserError: If the folder has no name, such as `.`, and thus cannot be replaced.
        OSError: If the disk is full or cannot be written to.
    """
    with atomic_folder(folder, facts) as partial:
        (partial / CAPTIONS).write_bytes("".join(f"{caption}\n" for caption in captions).encode())
        save_tensors({_CAPTIONS_TENSOR: embeddings.half()}, partial / EMBEDDINGS)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); {_FIX}") from error


def _read_embeddings(path: Path, num_captions: int) -> Float[Tensor, "N K"]:
    """Read the caption embeddings.

    Raises:
        UserError: If they are missing, do not match the number of captions, or are not of unit length.
    """
    found = load_tensors(path).get(_CAPTIONS_TENSOR)
    if found is None or found.ndim != 2:
        raise UserError(f"{path}: has no matrix '{_CAPTIONS_TENSOR}'; {_FIX}")
    if len(found) != num_captions:
        raise UserError(f"{path}: has {len(found):,} embeddings, but {CAPTIONS} has {num_captions:,} lines; {_FIX}")
    lengths = torch.linalg.vector_norm(found, dim=1, dtype=torch.float32)
    if not ((lengths - 1).abs() < 0.01).all():  # this also rejects NaN
        raise UserError(f"{path}: an embedding is not of unit length; {_FIX}")
    return found
