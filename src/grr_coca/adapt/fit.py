"""Adapt a model: choose hyperparameters by cross-validation, fit all images, and measure the fit on held-out images.

Shapes: N images, n some of them, E embedding width of the base, F features, V words, R directions of targets, K width
of the first part of a vector, L width of its second part, Z = K + L, Q queries (q queries with c candidate answers).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from grr_coca.adapt.read_pairs import ImageSet
from grr_coca.adapt.ridge import (
    MAX_EXACT,
    ExactRidge,
    Ridge,
    fit,
    group_linked,
    group_near_equal,
    links_of,
    make_folds,
    rows_of,
)
from grr_coca.adapt.targets import MAX_WORDS, TargetSpace
from grr_coca.common.shapes import Bool, Float, Int
from grr_coca.infer.adapted.adaptation import MAX_NUMBERS, Arrays, Hyperparameters, gaussian
from grr_coca.infer.adapted.descriptors import NUM_DESCRIPTORS, unit
from grr_coca.infer.adapted.words import Vocabulary

NUM_FOLDS = 5
MAX_PLAIN = 128
"""Maximum width L of the second part of a vector, which comes from the base embedding."""
_MAX_SELECTION = 1_200
"""Maximum number of images for choosing hyperparameters."""
_MIN_SELECTION = 50
"""Minimum number of images for choosing hyperparameters. With fewer images, chance would decide."""
_NEAR_EMBEDDING, _NEAR_DESCRIPTORS = 0.9, 0.97
"""Minimum cosine similarities of near-equal images, which share a fold. The first number applies to base embeddings,
and the second to descriptors."""
_MIN_QUERIES = 20
"""Minimum number of queries. Metrics of fewer queries are meaningless, and are omitted."""
_GRID: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("penalty", (0.1, 0.2, 0.5)),
    ("width", (0.25, 0.4, 0.7)),
    ("text_weight", (0.05, 0.2, 0.6)),
    ("plain_share", (0.3, 0.6, 1.0)),
)
"""Candidate values of each hyperparameter, which are tried in this order. The default is kept unless a candidate is
significantly better."""

_TUNED = Hyperparameters(width=0.5, penalty=0.1, plain_share=0.5)
"""Hyperparameters for a base that was fine-tuned on the images, chosen by cross-validation on the training pairs of
three domains."""

OnStage = Callable[[str], object]
"""Callback that gets a short description when a stage begins."""


@dataclass(frozen=True)
class HeldOutFold:
    """A fold that serves as a gallery to search. Its images are held out from the fit.

    Attributes:
        rows: Indices of the fold's images in the image set.
        owners: For each query, the index of its image in the gallery.
        texts: For each query, the index of its caption in the texts of the image set.
        is_known: Whether each query's caption is also a caption of an image outside the fold.
        words: Whether each word of the vocabulary occurs in captions of images outside the fold.
    """

    rows: Int[np.ndarray, " n"]
    owners: Int[np.ndarray, " Q"]
    texts: Int[np.ndarray, " Q"]
    is_known: Bool[np.ndarray, " Q"]
    words: Bool[np.ndarray, " V"]


@dataclass(frozen=True)
class Folds:
    """Two divisions of the images into folds.

    If held-out images are given, they form the only fold, and all other images have fold -1.

    Attributes:
        any_caption: Division in which near-equal images share a fold.
        new_captions: Division in which images with equal captions also share a fold. None if there are too few
            different captions.
    """

    any_caption: Int[np.ndarray, " N"]
    new_captions: Int[np.ndarray, " N"] | None


@dataclass(frozen=True)
class AnswerRanks:
    """Rank of the first correct answer to each query, and the expected recall of a random ranking.

    From text to image, each caption is a query. From image to text, each image is a query.

    Attributes:
        ranks: Number of wrong answers ranked before or tied with the first correct one, by direction.
        chance: Expected recall of a random ranking for each query and each k of `RECALLS`, by direction.
        groups: Index of the image of each query from text to image, for confidence intervals that resample images.
    """

    ranks: dict[str, Int[np.ndarray, " Q"]]
    chance: dict[str, Float[np.ndarray, "Q 2"]]
    groups: Int[np.ndarray, " Q"]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a fit.

    Attributes:
        values: Hyperparameters of the fit.
        arrays: Matrices of the adaptation.
        order: Indices of the fitted images, landmarks first.
        num_landmarks: Number of landmarks.
        folds: Division of the images into folds.
        space: Target space.
        ridge: Regression on the targets.
        basis: Basis of the part of the target space that vectors represent.
        features: Features of all images, N F.
        plain: Base embeddings of all images, minus the mean over the fitted images and scaled to length 1, N E.
    """

    values: Hyperparameters
    arrays: Arrays
    order: Int[np.ndarray, " n"]
    num_landmarks: int
    folds: Folds
    space: TargetSpace
    ridge: Ridge
    basis: Float[np.ndarray, "R K"]
    features: Float[np.ndarray, "N F"]
    plain: Float[np.ndarray, "N E"]

    @property
    def split(self) -> tuple[int, int]:
        """Widths of the two parts of a vector, K and L."""
        return self.basis.shape[1], self.arrays.plain_map.shape[1]


@dataclass(frozen=True, kw_only=True)
class FitMetrics:
    """Measurements of a fit on held-out images.

    Attributes:
        held_out: Vector of each image, as predicted by a fit without the image's fold of `Folds.any_caption`, N K+L.
            The first part is 0 for images that are in no fold.
        figures: Answer ranks by kind of captions ("known", "new") and method.
        share_known: Fraction of the pairs in folds whose caption also belongs to an image outside their fold.
        curve: Text-to-image recall and its standard error, by the fraction of the images outside a fold that are
            fitted.
        curve_k: Number of results k for which the recall@k of `curve` is measured.
    """

    held_out: Float[np.ndarray, "N Z"]
    figures: dict[str, dict[str, AnswerRanks]]
    share_known: float
    curve: dict[float, tuple[float, float]]
    curve_k: int


RECALLS = (1, 10)
DIRECTIONS = ("text_to_image", "image_to_text")


def drop_held_out_copies(images: ImageSet) -> ImageSet:
    """Return the images without the held-out images that are near-equal to a fitted image."""
    near = _near_equal_groups(images)
    is_copy = np.isin(near, near[: images.num_fit])
    is_copy[: images.num_fit] = False
    return images.subset(np.flatnonzero(~is_copy)) if is_copy.any() else images


def fit_images(images: ImageSet, step: OnStage, *, is_tuned: bool = False) -> FitResult:
    """Choose hyperparameters, and fit the regression to images with captions.

    Args:
        images: Images with captions.
        step: Called when a part of the work begins.
        is_tuned: Whether the base was fine-tuned on the images. The default hyperparameters then differ, and features
            of the base's start model are not used for choosing hyperparameters.
    """
    embeddings, described = images.embeddings, images.described
    image_mean = embeddings[: images.num_fit].mean(axis=0)
    plain = unit(embeddings - image_mean)
    features = np.concatenate([plain, described], axis=1)
    step("near-equal images and folds")
    near = _near_equal_groups(images)
    own = np.arange(images.num_fit)
    inner = _folds(images.subset(own), near[own])
    folds = inner if images.num_fit == len(images) else _held_out_fold(images)
    texts = [images.captions.texts[text_id] for text_id in images.fitted_captions.text_ids]
    vocabulary = Vocabulary.from_captions(texts, MAX_WORDS)
    step("choosing values")
    default = _TUNED if is_tuned else Hyperparameters()
    if not images.is_seen_by_base:
        default = replace(default, plain_share=0.0)
    chosen_by = features
    if is_tuned and images.is_seen_by_base:  # without the start model; see benchmarks/own_pairs.md
        chosen_by = features[:, : plain.shape[1] + NUM_DESCRIPTORS]
    values = _choose_values(images, chosen_by, plain, vocabulary, near, default)
    step("fitting all images")
    space = TargetSpace(images.fitted_captions, vocabulary, values.text_weight)
    ridge = fit(features[own], values.width, values.penalty)
    predicted = ridge.predict_held_out(
        space.rows, inner.any_caption if inner.new_captions is None else inner.new_captions
    )
    basis = _principal_basis(predicted * space.whitening, MAX_NUMBERS - _plain_width(plain))
    others = np.setdiff1d(own, ridge.landmarks)
    return FitResult(
        values=values,
        arrays=_adaptation_arrays(images, space, ridge, basis, plain[own], image_mean, values),
        order=np.concatenate([ridge.landmarks, others]),
        num_landmarks=len(ridge.landmarks),
        folds=folds,
        space=space,
        ridge=ridge,
        basis=basis,
        features=features,
        plain=plain,
    )


def measure_fit(images: ImageSet, fitted: FitResult, step: OnStage) -> FitMetrics:
    """Measure a fit on held-out images.

    Args:
        images: Images of the fit.
        fitted: Model fitted to the images.
        step: Called when a part of the work begins.
    """
    step("measuring")
    space, folds, values = fitted.space, fitted.folds, fitted.values
    any_caption = _predict_unseen(fitted.ridge, space, fitted.features, values.width, folds.any_caption)
    figures = {"known": _rank_methods(images, fitted, folds.any_caption, any_caption, known=True)}
    unseen = any_caption
    if folds.new_captions is not None:
        unseen = _predict_unseen(fitted.ridge, space, fitted.features, values.width, folds.new_captions)
        figures["new"] = _rank_methods(images, fitted, folds.new_captions, unseen, known=False)
    step("learning curve")
    division = folds.any_caption if folds.new_captions is None else folds.new_captions
    curve_k = RECALLS[1] if (division == 0).sum() >= _LARGE_GALLERY else RECALLS[0]
    first = unit((any_caption * space.whitening) @ fitted.basis)
    lengths = _part_lengths(values.plain_share)
    second = unit(fitted.plain @ fitted.arrays.plain_map)
    return FitMetrics(
        held_out=np.concatenate([lengths[0] * first, lengths[1] * second], axis=1),
        figures={kind: ranks for kind, ranks in figures.items() if ranks is not None},
        share_known=_known_fraction(images, folds.any_caption),
        curve=_learning_curve(images, fitted, division, unseen, curve_k),
        curve_k=curve_k,
    )


# --- Folds and galleries


def _near_equal_groups(images: ImageSet) -> Int[np.ndarray, " N"]:
    described = images.described[:, :NUM_DESCRIPTORS]
    if not images.is_seen_by_base:
        described = unit(images.described)
        return group_near_equal(described, described, _NEAR_DESCRIPTORS, _NEAR_DESCRIPTORS)
    return group_near_equal(unit(images.embeddings), unit(described), _NEAR_EMBEDDING, _NEAR_DESCRIPTORS)


def _predict_unseen(
    ridge: Ridge, space: TargetSpace, features: Float[np.ndarray, "N F"], width: float, folds: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N R"]:
    """Predict the targets of each fold's images by a fit on all other images. Images without a fold get zeros."""
    num_fit = len(space.rows)
    if num_fit == len(features):
        return ridge.predict_held_out(space.rows, folds)
    predicted = np.zeros((len(features), space.rows.shape[1]), np.float32)
    predicted[num_fit:] = gaussian(features[num_fit:], features[ridge.landmarks], width) @ ridge.dual(space.rows)
    return predicted


def _held_out_fold(images: ImageSet) -> Folds:
    held = np.where(np.arange(len(images)) < images.num_fit, -1, 0)
    return Folds(held, held)


def _folds(images: ImageSet, near: Int[np.ndarray, " N"]) -> Folds:
    same_caption = _group_related_images(images, near)
    count = len(np.unique(same_caption))
    return Folds(make_folds(near, NUM_FOLDS), make_folds(same_caption, NUM_FOLDS) if count >= 2 * NUM_FOLDS else None)


def _group_related_images(images: ImageSet, near: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Group images that are near-equal or share a caption, directly or through a chain of such images."""
    links = links_of(images.captions.owners, images.captions.text_ids)
    groups = near.tolist()
    if all(groups[one] == groups[other] for one, other in links):
        return near
    return group_linked(len(near), [*links, *links_of(np.arange(len(near)), near)])


def galleries(images: ImageSet, space: TargetSpace, folds: Int[np.ndarray, " N"]) -> Iterator[HeldOutFold]:
    """Yield each fold as a gallery."""
    captions = images.captions
    for rows in rows_of(folds):
        number = np.full(len(images), -1)
        number[rows] = np.arange(len(rows))
        is_mine = number[captions.owners] >= 0
        seen = np.zeros(len(captions.texts), bool)
        seen[captions.text_ids[~is_mine]] = True
        texts = captions.text_ids[is_mine]
        others = np.flatnonzero(number < 0)
        yield HeldOutFold(
            rows, number[captions.owners[is_mine]], texts, seen[texts], space.words_in_captions_of(others)
        )


def _known_fraction(images: ImageSet, folds: Int[np.ndarray, " N"]) -> float:
    captions, known, count = images.captions, 0, 0
    for rows in rows_of(folds):
        is_mine = np.isin(captions.owners, rows)
        seen = np.zeros(len(captions.texts), bool)
        seen[captions.text_ids[~is_mine]] = True
        known += int(seen[captions.text_ids[is_mine]].sum())
        count += int(is_mine.sum())
    return known / max(1, count)


# --- Similarities of held-out images


def _part_lengths(share: float) -> tuple[np.float32, np.float32]:
    return np.float32(np.sqrt(1 / (1 + share))), np.float32(np.sqrt(share / (1 + share)))


def _plain_width(plain: Float[np.ndarray, "N E"]) -> int:
    return min(plain.shape[1], MAX_PLAIN) if plain.any() else 0


def _principal_basis(rows: Float[np.ndarray, "N R"], count: int) -> Float[np.ndarray, "R K"]:
    """Return the first `count` principal directions of rows, as orthonormal columns. All rows get the same weight."""
    rows = unit(rows)
    _, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float32))
    return np.ascontiguousarray(vectors[:, ::-1][:, :count])


def _similarities(
    gallery: HeldOutFold,
    space: TargetSpace,
    predicted: Float[np.ndarray, "N R"],
    plain: Float[np.ndarray, "N E"],
    share: float,
    basis: Float[np.ndarray, "R K"] | None = None,
) -> Float[np.ndarray, "n Q"]:
    """Return the similarities between the images of a gallery and its queries.

    Args:
        gallery: Images and queries. Words that occur only in captions of these images are ignored.
        space: Target space.
        predicted: Targets of all images, predicted without the images of the gallery.
        plain: Base embeddings of all images, centred and scaled to length 1.
        share: Weight of the base's own similarity.
        basis: Basis of the part of the target space to compare. If None, the full space is compared.
    """
    texts, columns = np.unique(gallery.texts, return_inverse=True)
    query_vectors = (space.without_words(gallery.words, texts) - space.mean) * space.whitening
    found = predicted[gallery.rows] * space.whitening
    if basis is not None:
        query_vectors, found = query_vectors @ basis, found @ basis
    similar = unit(found) @ unit(query_vectors).T
    similar += share * (plain[gallery.rows] @ space.plain(texts).T)
    return similar[:, columns]


def ranks_of(
    similar: Float[np.ndarray, "n Q"], gallery: HeldOutFold, chosen: Bool[np.ndarray, " Q"]
) -> dict[str, Int[np.ndarray, " _"]]:
    """Return the number of wrong answers ranked before or tied with the first correct one, by direction.

    If several images have the same caption, each of them is a correct answer to it.

    Args:
        similar: Similarities of images and queries.
        gallery: Images and queries.
        chosen: Mask of the queries to count. From image to text, the images of these queries are counted.
    """
    is_right = _correct_answers(gallery)
    from_text = _ranks(similar.T[chosen], is_right.T[chosen])
    owners = np.unique(gallery.owners[chosen])
    return {"text_to_image": from_text, "image_to_text": _ranks(similar[owners], is_right[owners])}


def _correct_answers(gallery: HeldOutFold) -> Bool[np.ndarray, "n Q"]:
    texts, columns = np.unique(gallery.texts, return_inverse=True)
    has = np.zeros((len(gallery.rows), len(texts)), bool)
    has[gallery.owners, columns] = True
    return has[:, columns]


def _ranks(similar: Float[np.ndarray, "q c"], is_right: Bool[np.ndarray, "q c"]) -> Int[np.ndarray, " q"]:
    best = np.where(is_right, similar, -np.inf).max(axis=1, keepdims=True)
    return (~(similar < best - 1e-6) & ~is_right).sum(axis=1)


def _chance_recalls(is_right: Bool[np.ndarray, "q c"]) -> Float[np.ndarray, "q 2"]:
    """Return the expected recall of a random ranking, for each k of `RECALLS`."""
    count, wrong = is_right.shape[1], (~is_right).sum(axis=1).astype(np.float64)
    columns = []
    for k in RECALLS:
        missed = np.ones_like(wrong)
        for drawn in range(min(k, count)):
            missed *= (wrong - drawn).clip(min=0) / (count - drawn)
        columns.append(1 - missed)
    return np.stack(columns, axis=1)


# --- Choosing values


def _choose_values(
    images: ImageSet,
    features: Float[np.ndarray, "N F"],
    plain: Float[np.ndarray, "N E"],
    vocabulary: Vocabulary,
    near: Int[np.ndarray, " N"],
    values: Hyperparameters,
) -> Hyperparameters:
    """Choose hyperparameters on the held-out images if given, otherwise by cross-validation.

    At most `_MAX_SELECTION` fitted images and at most as many held-out images are used. If fewer than `_MIN_SELECTION`
    images can be tested, the given values are returned. A candidate replaces the present value only if it raises the
    mean reciprocal rank by more than the standard error of the difference.
    """
    if (len(images) - images.num_fit or len(images)) < _MIN_SELECTION:
        return values
    random = np.random.default_rng(0)
    parts = np.split(np.arange(len(images)), [images.num_fit])
    parts = [random.choice(own, _MAX_SELECTION, replace=False) if len(own) > _MAX_SELECTION else own for own in parts]
    rows = np.sort(np.concatenate(parts))
    part = images.subset(rows)
    folds = _folds(part, near[rows]) if part.num_fit == len(part) else _held_out_fold(part)
    share = _known_fraction(part, folds.any_caption)
    trial = _Trial(
        images=part,
        features=features[rows],
        plain=plain[rows],
        vocabulary=vocabulary,
        folds=folds,
        share_known=share,
    )
    best = trial.scores(values)
    for name, choices in _GRID:
        if name == "plain_share" and not images.is_seen_by_base:
            continue
        usual = values
        for choice in choices:
            tried = replace(usual, **{name: choice})
            if tried == usual:
                continue
            scores = trial.scores(tried)
            gain = scores - best
            if gain.mean() > gain.std() / np.sqrt(len(gain)):
                values, best = tried, scores
    return values


@dataclass(kw_only=True)
class _Trial:
    """Trial of hyperparameters on some of the images."""

    images: ImageSet
    features: Float[np.ndarray, "N F"]
    plain: Float[np.ndarray, "N E"]
    vocabulary: Vocabulary
    folds: Folds
    share_known: float

    def __post_init__(self) -> None:
        self._spaces: dict[float, TargetSpace] = {}
        self._ridges: dict[tuple[float, float], Ridge] = {}

    def scores(self, values: Hyperparameters) -> Float[np.ndarray, " Q"]:
        """Return the reciprocal rank of each query, multiplied by a weight.

        Queries with known captions and queries with new captions are weighted by their fractions of all pairs. A kind
        with a fraction below 0.05 is omitted. If there are no queries, the result is a single 0.
        """
        if values.text_weight not in self._spaces:
            space = TargetSpace(self.images.fitted_captions, self.vocabulary, values.text_weight)
            self._spaces[values.text_weight] = space
        key = values.width, values.penalty
        if key not in self._ridges:
            self._ridges = {key: fit(self.features[: self.images.num_fit], *key)}
        space, ridge = self._spaces[values.text_weight], self._ridges[key]
        found: list[np.ndarray] = []
        for folds, is_known in ((self.folds.any_caption, True), (self.folds.new_captions, False)):
            weight = self.share_known if is_known else 1 - self.share_known
            if folds is None or weight < 0.05:
                continue
            predicted = _predict_unseen(ridge, space, self.features, values.width, folds)
            own: list[np.ndarray] = []
            for gallery in galleries(self.images, space, folds):
                chosen = gallery.is_known if is_known else ~gallery.is_known
                if chosen.any():
                    similar = _similarities(gallery, space, predicted, self.plain, values.plain_share)
                    own += list(ranks_of(similar, gallery, chosen).values())
            if own:
                reciprocal = 1 / (1 + np.concatenate(own))
                found.append(weight * len(self.images) / len(reciprocal) * reciprocal)
        return np.concatenate(found) if found else np.zeros(1)


# --- Figures


def _rank_methods(
    images: ImageSet,
    fitted: FitResult,
    folds: Int[np.ndarray, " N"],
    predicted: Float[np.ndarray, "N R"],
    *,
    known: bool,
) -> dict[str, AnswerRanks] | None:
    """Return the answer ranks of all methods on the folds, by method, or None if there are too few queries.

    `known` selects the queries whose captions occur outside their fold, or those whose captions do not.
    """
    space, plain, features = fitted.space, fitted.plain, fitted.features
    shipped = unit(images.embeddings)
    texts = unit(images.captions.embeddings)
    collected: dict[str, dict[str, list[np.ndarray]]] = {}
    chances: dict[str, list[np.ndarray]] = {name: [] for name in DIRECTIONS}
    owners: list[np.ndarray] = []
    for gallery in galleries(images, space, folds):
        chosen = gallery.is_known if known else ~gallery.is_known
        if not chosen.any():
            continue
        seen = np.flatnonzero(~np.isin(np.arange(len(images)), gallery.rows))
        nearest = seen[_nearest_rows(features[gallery.rows], features[seen])]
        query_vectors = (space.without_words(gallery.words, gallery.texts) - space.mean) * space.whitening
        of_base = {
            "as shipped": shipped[gallery.rows] @ texts[gallery.texts].T,
            "centred": plain[gallery.rows] @ space.plain(gallery.texts).T,
        }
        methods = {
            **(of_base if images.is_seen_by_base else {}),
            "nearest neighbour": unit(space.rows[nearest] * space.whitening) @ unit(query_vectors).T,
            "adapted": _similarities(gallery, space, predicted, plain, fitted.values.plain_share, fitted.basis),
        }
        for name, similar in methods.items():
            for direction, ranks in ranks_of(similar, gallery, chosen).items():
                collected.setdefault(name, {}).setdefault(direction, []).append(ranks)
        is_right = _correct_answers(gallery)
        chances["text_to_image"].append(_chance_recalls(is_right.T[chosen]))
        chances["image_to_text"].append(_chance_recalls(is_right[np.unique(gallery.owners[chosen])]))
        owners.append(gallery.rows[gallery.owners[chosen]])
    if sum(map(len, owners)) < _MIN_QUERIES:
        return None
    chance = {name: np.concatenate(parts) for name, parts in chances.items()}
    groups = np.concatenate(owners)
    return {
        name: AnswerRanks({direction: np.concatenate(parts) for direction, parts in found.items()}, chance, groups)
        for name, found in collected.items()
    }


def _nearest_rows(rows: Float[np.ndarray, "n F"], others: Float[np.ndarray, "m F"]) -> Int[np.ndarray, " n"]:
    squares = np.square(others).sum(axis=1)
    step = 1024
    parts = [(2 * rows[at : at + step] @ others.T - squares).argmax(axis=1) for at in range(0, len(rows), step)]
    return np.concatenate(parts)


# --- Learning curve


_LARGE_GALLERY = 100
"""Minimum number of images in the first fold for recall@10. In a smaller fold, ten results are a large part of it."""


def _learning_curve(
    images: ImageSet,
    fitted: FitResult,
    division: Int[np.ndarray, " N"],
    unseen: Float[np.ndarray, "N R"],
    k: int,
) -> dict[float, tuple[float, float]]:
    """Return the text-to-image recall and its standard error, by the fraction of the other images that are fitted.

    The fractions are a quarter, a half and all of the images outside a gallery. All fractions are measured on the same
    galleries. For large sets, only the first fold is a gallery, and at most `MAX_EXACT` other images are fitted.

    Args:
        images: Images of the fit.
        fitted: Model fitted to the images.
        division: Fold of each image.
        unseen: Predictions for the images of each fold, by a fit on all other folds.
        k: Number of results among which a correct answer counts as found.
    """
    space, features, values = fitted.space, fitted.features, fitted.values
    random = np.random.default_rng(0)
    order = random.permutation(len(images))
    hits: dict[float, list[np.ndarray]] = {}
    budget = 2_500  # maximum number of images for measuring all folds; the time grows with its cube
    for number, gallery in enumerate(galleries(images, space, division)):
        if number and len(images) > budget:
            break
        seen = order[~np.isin(order, gallery.rows)][:MAX_EXACT]
        for share in (0.25, 0.5, 1.0):
            own = np.sort(seen[: max(2, round(share * len(seen)))])
            predicted = unseen
            if share < 1 or len(images) > MAX_EXACT:
                dual = ExactRidge(features[own], values.width, values.penalty).dual(space.rows[own])
                predicted = np.zeros((len(images), space.rows.shape[1]), np.float32)
                predicted[gallery.rows] = gaussian(features[gallery.rows], features[own], values.width) @ dual
            known = replace(gallery, words=space.words_in_captions_of(own))
            similar = _similarities(known, space, predicted, fitted.plain, values.plain_share)
            ranks = ranks_of(similar, gallery, np.ones(len(gallery.texts), bool))["text_to_image"]
            hits.setdefault(share, []).append(ranks < k)
    found = {share: np.concatenate(parts) for share, parts in hits.items()}
    return {share: (float(hit.mean()), float(hit.std() / np.sqrt(len(hit)))) for share, hit in found.items()}


# --- Matrices


def _adaptation_arrays(
    images: ImageSet,
    space: TargetSpace,
    ridge: Ridge,
    basis: Float[np.ndarray, "R K"],
    plain: Float[np.ndarray, "N E"],
    image_mean: Float[np.ndarray, " E"],
    values: Hyperparameters,
) -> Arrays:
    """Return the matrices of the adaptation, in fp32."""
    to_first = space.whitening[:, None] * basis
    _, vectors = np.linalg.eigh(plain.T @ plain)
    plain_map = np.ascontiguousarray(vectors[:, ::-1][:, : _plain_width(plain)])
    num_words = len(space.vocabulary)
    back = basis / space.whitening[:, None]
    lengths = _part_lengths(values.plain_share)
    texts = np.arange(len(images.captions.texts))
    first = unit(space.project(space.directions @ to_first) - space.mean @ to_first)
    second = unit(space.plain(texts) @ plain_map)
    dual = ridge.dual(space.rows) @ to_first
    return Arrays(
        rarities=space.vocabulary.rarities,
        image_mean=image_mean,
        text_mean=space.text_mean,
        plain_map=plain_map,
        word_map=space.directions @ to_first,
        word_offset=space.mean @ to_first,
        score_map=space.directions[:num_words] @ back,
        score_offset=space.mean @ back,
        score_gram=back.T @ back,
        dual=dual / np.abs(dual).max(),  # predictions are later scaled to length 1, so their scale is arbitrary
        caption_vectors=np.concatenate([lengths[0] * first, lengths[1] * second], axis=1),
    )


def flat_figures(figures: Mapping[str, Mapping[str, AnswerRanks]]) -> dict[str, dict[str, float]]:
    """Return recalls as plain numbers: by `KIND/METHOD`, then by `DIRECTION/R@k`.

    `KIND` is the kind of captions. `KIND/chance` has the expected recalls of a random ranking.
    """
    flat: dict[str, dict[str, float]] = {}
    for kind, methods in figures.items():
        for method, found in methods.items():
            flat[f"{kind}/{method}"] = {
                f"{direction}/R@{k}": float((found.ranks[direction] < k).mean())
                for direction in DIRECTIONS
                for k in RECALLS
            }
        first = next(iter(methods.values()))
        flat[f"{kind}/chance"] = {
            f"{direction}/R@{k}": float(first.chance[direction][:, column].mean())
            for direction in DIRECTIONS
            for column, k in enumerate(RECALLS)
        }
    return flat
