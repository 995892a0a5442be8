"""A text teacher in training: its embeddings of the captions of each batch, and of words that no image has.

The teacher itself does not run. `scripts/text_teacher.py` computes its embeddings once, and writes a folder:

| file | holds |
|---|---|
| `captions.txt` | the captions of the training pairs in lower case, one a line |
| `words.txt` | words and phrases that no image has, one a line |
| `embeddings.safetensors` | `captions` and `words`: an embedding of unit length for each line, in fp16 |
| `manifest.json` | sizes and checksums |

Shapes: N captions, M words, K width of the teacher's embeddings.
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
from grr_coca.common.files import MANIFEST, file_sha256, verify_folder, whole_folder
from grr_coca.common.ranks import Ranks
from grr_coca.data.batch import Batch, Words, pad_rows
from grr_coca.data.order import Shuffle
from grr_coca.data.sources.base import BadSample, PairSource
from grr_coca.data.text import caption_id, clean_caption
from grr_coca.data.tokenizer import Tokenizer
from grr_coca.model.checkpoint import load_tensors, save_tensors

CAPTIONS, WORDS, EMBEDDINGS = "captions.txt", "words.txt", "embeddings.safetensors"
_AGAIN = "write the folder anew with `python scripts/text_teacher.py RECIPE`"


@dataclass(frozen=True, kw_only=True)
class TeacherTexts:
    """The content of a teacher's folder. `ids`: of the captions, sorted; `rows`: row of each in `captions`."""

    folder: Path
    ids: Int[np.ndarray, " N"]
    rows: Int[np.ndarray, " N"]
    captions: Float[Tensor, "N K"]
    word_list: list[str]
    words: Float[Tensor, "M K"]

    @classmethod
    def read(cls, path: str) -> "TeacherTexts":
        """Read and check a folder.

        Raises:
            UserError: the folder or a file is missing or damaged, or texts and embeddings do not fit together.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{folder}: teacher: no such folder; `python scripts/text_teacher.py RECIPE` writes it")
        verify_folder(folder)
        texts = {name: _lines(folder / name) for name in (CAPTIONS, WORDS)}
        tensors = load_tensors(folder / EMBEDDINGS)
        embeddings = [_embeddings(folder / EMBEDDINGS, tensors, Path(name).stem, len(texts[name])) for name in texts]
        captions, words = embeddings
        if captions.shape[1] != words.shape[1]:
            raise UserError(
                f"{folder / EMBEDDINGS}: the captions' embeddings have {captions.shape[1]} numbers, those of the words "
                f"{words.shape[1]}; both must be of one teacher; {_AGAIN}"
            )
        ids = np.array([caption_id(caption) for caption in texts[CAPTIONS]], np.int64)
        rows = ids.argsort()
        return cls(folder=folder, ids=ids[rows], rows=rows, captions=captions, word_list=texts[WORDS], words=words)

    @property
    def digest(self) -> str:
        """A digest of the content, by which a resumed run recognizes its teacher."""
        return file_sha256(self.folder / MANIFEST)[:32]

    def __len__(self) -> int:
        return len(self.ids) + len(self.word_list)

    def require_captions(self, pairs: PairSource) -> None:
        """Raise an error if the teacher has not seen the caption of some pair.

        Raises:
            UserError: it has not; the message names the first and says how many there are.
        """
        captions = training_captions(pairs)
        is_known = self._find(np.array([caption_id(caption) for caption in captions], np.int64))[1]
        unknown = [captions[number] for number in np.flatnonzero(~is_known)]
        if unknown:
            raise UserError(
                f"{self.folder}: teacher: it has no embedding of {len(unknown):,} of the {len(captions):,} training "
                f"captions, such as {unknown[0]!r}; it was written for other pairs; write one for these with "
                "`python scripts/text_teacher.py RECIPE`"
            )

    def of(self, caption_ids: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
        """The embeddings of captions by their ids.

        Raises:
            UserError: a caption has none.
        """
        places, is_known = self._find(caption_ids.numpy())
        if not is_known.all():
            raise UserError(
                f"{self.folder}: teacher: it has no embedding of a training caption; the pairs have changed"
            )
        return self.captions[self.rows[places]].float()

    def _find(self, ids: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " B"], np.ndarray]:
        """Places of ids among the sorted ones, and whether each is there."""
        places = np.searchsorted(self.ids, ids).clip(max=max(len(self.ids) - 1, 0))
        return places, self.ids[places] == ids if len(self.ids) else np.zeros(len(ids), bool)


def training_captions(pairs: PairSource) -> list[str]:
    """All captions that training may draw from these pairs, cleaned, in lower case, each once. Images are not read."""
    found: dict[str, None] = {}
    for index in range(len(pairs)):
        try:
            captions = pairs.captions(index)
        except BadSample:
            continue
        for caption in captions:  # a pair may have a good caption beside a bad one
            with suppress(BadSample):
                found[clean_caption(caption, "").lower()] = None
    return list(found)


def write_teacher(
    folder: Path,
    captions: Sequence[str],
    words: Sequence[str],
    caption_embeddings: Float[Tensor, "N K"],
    word_embeddings: Float[Tensor, "M K"],
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the folder of a teacher, completely or not at all.

    Args:
        folder: where to write it.
        captions: the captions of the training pairs, in lower case.
        words: words and phrases that no image has.
        caption_embeddings: of unit length.
        word_embeddings: of unit length.
        facts: further content of its manifest, such as the teacher's name.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    with whole_folder(folder, facts) as partial:
        for name, texts in ((CAPTIONS, captions), (WORDS, words)):
            (partial / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        tensors = {"captions": caption_embeddings.half(), "words": word_embeddings.half()}
        save_tensors(tensors, partial / EMBEDDINGS)


class Teacher:
    """Adds the teacher's embeddings and words to the batches of a run.

    The words of a step are a function of seed and step, in endless shuffled epochs, as the pairs are. Each rank has the
    same number of them.

    Args:
        texts: the folder's content.
        num_words: words of a step, over all ranks, which share them evenly.
        tokenizer: of the model.
        context_length: of the model. Longer phrases lose their last words.
        seed: of the order of the words.
        ranks: this process among those of the run.

    Raises:
        UserError: there are fewer words than a step takes.
    """

    def __init__(
        self,
        texts: TeacherTexts,
        num_words: int,
        tokenizer: Tokenizer,
        context_length: int,
        *,
        seed: int,
        ranks: Ranks,
    ) -> None:
        assert num_words % ranks.size == 0, "see Recipe.require_even_shares"
        if num_words > len(texts.word_list):
            raise UserError(
                f"{texts.folder / WORDS}: has {len(texts.word_list)} words, fewer than teacher: words {num_words}"
            )
        self._texts = texts
        self._num_words = num_words
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._ranks = ranks
        self._order = Shuffle(len(texts.word_list), seed) if num_words else None

    def teach(self, micro_batches: Sequence[Batch], step: int) -> list[Batch]:
        """This rank's share of a step, with the teacher's embeddings and an even part of the words in each piece."""
        parts = np.array_split(self._words_of(step), len(micro_batches))
        return [
            replace(batch, teacher=self._texts.of(batch.caption_ids), words=self._words(part) if len(part) else None)
            for batch, part in zip(micro_batches, parts, strict=True)
        ]

    def _words_of(self, step: int) -> Int[np.ndarray, " w"]:
        """Numbers of this rank's words."""
        if self._order is None:
            return np.zeros(0, np.int64)
        share = self._num_words // self._ranks.size
        first = step * self._num_words + self._ranks.rank * share
        return np.array([self._order.at(position).sample for position in range(first, first + share)])

    def _words(self, numbers: Int[np.ndarray, " w"]) -> Words:
        words = [self._texts.word_list[number] for number in numbers]
        token_ids, lengths = pad_rows([self._tokenizer.encode_row(word, self._context_length) for word in words])
        ids = torch.tensor([caption_id(word) for word in words])
        return Words(token_ids=token_ids, lengths=lengths, ids=ids, teacher=self._texts.words[numbers].float())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _embeddings(path: Path, tensors: dict[str, Tensor], name: str, count: int) -> Float[Tensor, "N K"]:
    """The embeddings of some texts, checked."""
    found = tensors.get(name)
    if found is None or found.ndim != 2:
        raise UserError(f"{path}: has no matrix {name!r}; {_AGAIN}")
    if len(found) != count:
        raise UserError(
            f"{path}: has {len(found):,} embeddings of {name}, and {name}.txt has {count:,} lines; {_AGAIN}"
        )
    lengths = torch.linalg.vector_norm(found, dim=1, dtype=torch.float32)
    if not ((lengths - 1).abs() < 0.01).all():  # NaN too
        raise UserError(f"{path}: an embedding of {name} is not of unit length; {_AGAIN}")
    return found
