"""Rank candidate captions for an image: captions of similar images, joined parts of these captions, and decoder beams.

Shapes: B images, K captions of an image or width of a vector, T tokens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grr_coca.common.shapes import Float, Int
from grr_coca.data.tokenizer import Tokenizer
from grr_coca.infer.adapted.adaptation import Adaptation, Captioning
from grr_coca.infer.engine.base import EncodedImages, Engine
from grr_coca.infer.generate import GenerationOptions
from grr_coca.infer.generate.captions import Caption, generate

NUM_NEAR = 10
"""Maximum number of captions of similar images among the candidates, of joined captions, and of captions in the
shortlist."""
MAX_BEAMS = 5
_MAX_JOINED = 500
_PUNCTUATION = ",.;:!?"


@dataclass(frozen=True)
class Candidates:
    """Candidate captions for one image.

    Attributes:
        texts: Distinct captions: first those of similar images ("near"), then joined captions, then beams.
        kinds: Kind of each candidate: "near", "joined" or "beam".
        similarities: Similarity of each near caption to the image. NaN for other kinds.
        word_scores: Agreement of the candidate's words with the prediction; see `Adaptation.word_scores`.
    """

    texts: list[str]
    kinds: list[str]
    similarities: np.ndarray
    word_scores: np.ndarray


def collect_candidates(
    adaptation: Adaptation,
    vectors: Float[np.ndarray, "B K"],
    captioning: Captioning,
    beams: Sequence[Sequence[str]],
    allowed: Sequence[Int[np.ndarray, " _"]] | None = None,
) -> list[Candidates]:
    """Collect the candidate captions of each image.

    Near captions and joined captions are limited to the `NUM_NEAR` best of each kind.

    Args:
        adaptation: Parameters of the model.
        vectors: Vectors of the images.
        captioning: Settings for choosing captions, which state whether captions are joined.
        beams: The decoder's captions for each image.
        allowed: Indices of the fitted captions that can be used for each image. If None, all captions can be used.
    """
    found = []
    similarities = vectors @ adaptation.arrays.caption_vectors.T
    near_texts, near_scores = [], []
    for row, scores in enumerate(similarities):
        numbers = np.arange(len(scores)) if allowed is None else allowed[row]
        best = numbers[np.argsort(-scores[numbers], kind="stable")[:NUM_NEAR]]
        near_texts.append([adaptation.header.captions[number] for number in best])
        near_scores.append(scores[best])
    joined = [join_captions(texts) if captioning.composed else [] for texts in near_texts]
    scored = adaptation.word_scores(
        vectors, [[*near, *parts, *own] for near, parts, own in zip(near_texts, joined, beams, strict=True)]
    )
    for near, own_scores, parts, own, scores in zip(near_texts, near_scores, joined, beams, scored, strict=True):
        first, last = len(near), len(near) + len(parts)
        best = first + np.argsort(-scores[first:last], kind="stable")[:NUM_NEAR]
        rows = [*range(first), *best.tolist(), *range(last, last + len(own))]
        texts = [*near, *parts, *own]
        kinds = ["near"] * first + ["joined"] * len(parts) + ["beam"] * len(own)
        distinct = {texts[row]: row for row in reversed(rows)}
        kept = sorted(distinct.values(), key=rows.index)
        known = np.concatenate([own_scores, np.full(len(texts) - first, np.nan)])
        found.append(
            Candidates([texts[row] for row in kept], [kinds[row] for row in kept], known[kept], np.array(scores)[kept])
        )
    return found


def make_shortlist(candidates: Candidates) -> Candidates:
    """Select the `NUM_NEAR` candidates whose words agree most with the prediction, best first.

    The decoder then scores only these candidates.
    """
    return _select(candidates, np.argsort(-candidates.word_scores, kind="stable")[:NUM_NEAR])


def _select(candidates: Candidates, rows: Int[np.ndarray, " K"]) -> Candidates:
    return Candidates(
        [candidates.texts[row] for row in rows],
        [candidates.kinds[row] for row in rows],
        candidates.similarities[rows],
        candidates.word_scores[rows],
    )


def join_captions(captions: Sequence[str]) -> list[str]:
    """Join the beginning of each caption to the end of each other caption, at each word that both contain.

    For example, "latin small letter o with acute" and "greek capital letter eta" yield "latin small letter eta". In a
    joined caption, each word occurs at most as often as in the original caption that contains it more often. The result
    contains distinct captions that differ from the given captions, at most 500.
    """
    split = [caption.split() for caption in captions]
    # Captions with several sentences are omitted, because their joined parts make no sense.
    tokens = [words for words in split if not any(word[-1] in ".!?" for word in words[:-1])]
    occurrences: dict[str, list[tuple[int, int]]] = {}
    for number, words in enumerate(tokens):
        for position, word in enumerate(words):
            occurrences.setdefault(word.strip(_PUNCTUATION).lower(), []).append((number, position))
    counts = [Counter(words) for words in tokens]
    joined: dict[str, None] = {}
    for found in occurrences.values():
        for one, begin in found:
            for other, end in found:
                if one == other or len(joined) >= _MAX_JOINED:
                    continue
                words = tokens[one][:begin] + tokens[other][end:]
                limits = counts[one] | counts[other]
                if all(count <= limits[word] for word, count in Counter(words).items()):
                    joined[" ".join(words)] = None
    return [text for text in joined if text not in set(captions)]


def select_enabled(candidates: Candidates, captioning: Captioning) -> Candidates:
    """Select the candidates of the kinds that the settings enable. Near captions are always enabled."""
    kinds = {"near", *(["joined"] if captioning.composed else []), *(["beam"] if captioning.beams else [])}
    return _select(candidates, np.flatnonzero([kind in kinds for kind in candidates.kinds]))


def rank_candidates(
    candidates: Candidates, captioning: Captioning, log_probs: Mapping[str, float]
) -> tuple[list[str], Float[np.ndarray, " K"]]:
    """Rank the enabled candidates for an image, and return the captions, best first, with their scores.

    If log-probabilities are used, only the shortlist is ranked, by word scores plus weighted log-probabilities.
    Otherwise, candidates are ranked by word scores if captions are joined, and by similarities if not.

    Args:
        candidates: The candidates.
        captioning: Settings for choosing captions.
        log_probs: The decoder's summed log-probability of each enabled caption that `make_shortlist` selects. Not used
            if the weight of log-probabilities is 0.
    """
    own = select_enabled(candidates, captioning)
    if captioning.log_prob_weight:
        own = make_shortlist(own)
        scores = own.word_scores + captioning.log_prob_weight * np.array([log_probs[text] for text in own.texts])
    else:
        scores = own.word_scores if captioning.composed else own.similarities
    order = np.argsort(-scores, kind="stable")
    return [own.texts[position] for position in order], scores[order]


def beam_captions(engine: Engine, tokenizer: Tokenizer, pixels: np.ndarray, count: int) -> list[list[str]]:
    """Return the best captions of each image from a search with `count` beams, best first, without empty captions."""
    options = GenerationOptions(num_beams=count, num_captions=count)
    found = generate(engine, tokenizer, pixels, options)
    return [[caption.text for caption in own if caption.text] for own in found.captions]


def add_log_probs(
    engine: Engine, tokenizer: Tokenizer, images: EncodedImages, texts: Sequence[Sequence[str]]
) -> list[list[Caption]]:
    """Return captions with their tokens and the decoder's log-probabilities.

    Args:
        engine: Engine of the base or of the adapted model.
        tokenizer: Tokenizer of the model.
        images: Images that this engine has encoded.
        texts: Captions of each image, at least one per image. If a caption is longer than the context, only its first
            tokens have a log-probability.

    Returns:
        The captions in the given order. Their tokens include the end token, unless the context truncates them.
    """
    room = engine.context_length - 2
    ids = [[_token_ids(tokenizer, text, room) for text in own] for own in texts]
    count, longest = max(map(len, ids)), max(len(row) for own in ids for row in own)
    padded = np.full((len(ids), count, longest), tokenizer.eos_id, np.int64)
    for image, own in enumerate(ids):
        for row, tokens in enumerate(own):
            padded[image, row, : len(tokens)] = tokens
    log_probs = _read_log_probs(engine, images, tokenizer.bos_id, padded, [[len(row) for row in own] for own in ids])
    return [
        [
            Caption(text, tuple(tokens), tuple(log_probs[image, row, : len(tokens)].tolist()))
            for row, (text, tokens) in enumerate(zip(own, ids[image], strict=True))
        ]
        for image, own in enumerate(texts)
    ]


def _read_log_probs(
    engine: Engine,
    images: EncodedImages,
    bos_id: int,
    tokens: Int[np.ndarray, "B K T"],
    lengths: Sequence[Sequence[int]],
) -> Float[np.ndarray, "B K T"]:
    """Return the log-probability of each token of each caption. The values after the end of a caption have no meaning.

    Captions of an image that begin with the same tokens share the computation for these tokens, and finished captions
    are dropped.

    Args:
        engine: Engine that runs the decoder.
        images: Images that this engine has encoded.
        bos_id: Id of the begin token.
        tokens: Token ids of the captions, padded with any token.
        lengths: Number of tokens of each caption without padding.
    """
    count, longest = tokens.shape[1:]
    decoder = engine.decoder(images, num_prompt=1, max_tokens=longest, num_captions=count)
    found = np.zeros(tokens.shape, np.float32)
    unfinished = list(range(len(tokens)))
    """Images with unfinished captions."""
    row_of = np.zeros(tokens.shape[:2], np.int64)
    """For each caption, the decoder row, counted within the image, that has read the caption's tokens so far. The row
    is 0 for finished captions."""
    new_ids = np.full((len(tokens), 1), bos_id, np.int64)
    for position in range(longest):
        width = len(new_ids) // len(unfinished)
        values = (
            decoder.step(new_ids)
            .log_probs_of(tokens[unfinished, :, position].repeat(width, axis=0))
            .reshape(-1, width, count)
        )
        found[unfinished, :, position] = np.take_along_axis(values, row_of[unfinished][:, None], axis=1)[:, 0]
        prefixes: dict[int, dict[tuple[int, int], int]] = {}
        """For each image, a mapping with one item for each distinct prefix of unfinished captions: from the current row
        and the new token of this prefix to its next row."""
        before, row_of = row_of, np.zeros_like(row_of)
        for number, image in enumerate(unfinished):
            for caption, length in enumerate(lengths[image]):
                if length > position + 1:
                    own = prefixes.setdefault(image, {})
                    step = number * width + int(before[image, caption]), int(tokens[image, caption, position])
                    row_of[image, caption] = own.setdefault(step, len(own))
        if not prefixes:
            break
        unfinished, width = list(prefixes), max(map(len, prefixes.values()))
        steps = [(*own, *[next(iter(own))] * (width - len(own))) for own in prefixes.values()]
        parents, following = np.array(steps, np.int64).reshape(-1, 2).T
        decoder.reorder(parents)
        new_ids = following[:, None]
    return found


def sum_log_probs(
    engine: Engine, tokenizer: Tokenizer, images: EncodedImages, texts: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """Map the captions of each image to their summed log-probabilities; see `add_log_probs`."""
    found = add_log_probs(engine, tokenizer, images, texts)
    return [{caption.text: sum(caption.log_probs) for caption in own} for own in found]


def _token_ids(tokenizer: Tokenizer, text: str, room: int) -> list[int]:
    return [*tokenizer.encode(text), tokenizer.eos_id][:room]


def confidence_features(scores: Float[np.ndarray, " K"], nearest: float) -> tuple[float, float, float]:
    """Return the features from which the confidence in the first of some ranked candidates is computed.

    They are its score, its lead over the second candidate, and `nearest`, the kernel value of the nearest fitted image.
    A single candidate leads by its score.
    """
    lead = float(scores[0] - scores[1]) if len(scores) > 1 else float(scores[0])
    return float(scores[0]), lead, nearest
