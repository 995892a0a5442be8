"""Options for relevance and duplicates, and models without a relevance curve."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from library import fill, make_entry, make_vectors

from grr_coca.cli import main
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.model.checkpoint_files import RELEVANCE
from grr_coca.model.config import CoCaConfig
from grr_coca.model.presets import get_preset
from grr_coca_search.duplicates import MAX_DISTANCE_LIMIT, duplicate_groups
from grr_coca_search.entry import MAX_BITS, MIN_COSINE
from grr_coca_search.index import Index
from grr_coca_search.query import Query, SearchOptions, search_store
from grr_coca_search.relevance import RelevanceCurve, curve_of
from grr_coca_search.store import Changes

DRAWINGS = Path(__file__).parents[2] / "docs" / "drawings"
PLAIN = {"where": None, "hybrid": False, "fold": False}


CURVE = RelevanceCurve(per_deviation=1, per_agreement=2, per_log_images=-0.5, offset=-5)


class VectorModel:
    """Embeds a text as the vector whose number it is."""

    def __init__(self, vectors: np.ndarray, curve: RelevanceCurve | None = CURVE) -> None:
        self.vectors = vectors
        self.curve = curve

    def related_words(self, text):
        return ()

    def embed_texts(self, texts):
        return np.stack([self.vectors[int(text)] for text in texts])

    def embed_captions(self, captions):
        return make_vectors(len(captions), seed=len(captions) + 7)

    embed_sample = embed_captions

    def unknown_texts(self, texts):
        return ()


# --- Relevance


@pytest.fixture
def drawings(tmp_path):
    """An index of six drawings by a model that names all of them right."""
    shutil.copytree(DRAWINGS, tmp_path / "drawings")
    with Index.open(tmp_path / "index", "pictograms", create=True) as index:
        index.add(tmp_path / "drawings")
        yield index


def test_hits_of_less_relevance_are_excluded(drawings):
    everything = drawings.search("snowman")
    wanted = [hit.path for hit in everything if hit.relevance >= 0.5]
    assert 0 < len(wanted) < len(everything)
    assert [hit.path for hit in drawings.search("snowman", min_relevance=0.5)] == wanted
    assert len(drawings.search("snowman", min_relevance=1.0)) == 0
    for out_of_range in (-0.1, 1.5, 50.0, float("nan")):
        with pytest.raises(UserError, match=r"min_relevance must be from 0 to 1"):
            drawings.search("snowman", min_relevance=out_of_range)


def test_queries_with_images_have_no_relevance(drawings):
    """The curves were fitted to texts. For an image, nearly all hits would have 100 %."""
    image = DRAWINGS / "guitar.webp"
    for texts in ((), ("guitar",)):
        found = drawings.search(texts, image=image)
        assert (found.can_tell, found.is_fitted, found.verdict) == (False, True, "likely")
        assert found.format_relevance(found[0]) == "?"
        assert Path(found[0].path).name == image.name
        assert found.opening == "relevance was not measured for queries with images; the closest"
        assert len(drawings.search(texts, image=image, min_relevance=1e-9)) == 0
    assert not drawings.search(image=image, where="width > 9999").can_tell


def test_command_reports_why_no_hit_remains(drawings, capsys):
    place = drawings.store.location
    assert main(["search", place, "snowman", "--min-relevance", "0.5"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    assert main(["search", place, "snowman", "--min-relevance", "1"]) == 0
    assert capsys.readouterr().err == "no hit reaches 100% among 6 images\n"
    assert main(["search", place, "snowman", "--min-relevance", "1", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert main(["search", place, "snowman", "--min-relevance", "1", "-0"]) == 0
    assert capsys.readouterr().out == ""


def test_min_relevance_excludes_all_hits_without_relevance(store):
    """A script that removes the hits must not get those of which nothing is known."""
    entries, vectors = fill(store, 40)
    for model, has_relevance in ((VectorModel(vectors), True), (VectorModel(vectors, curve=None), False)):
        query = Query(texts=("3",))
        found = search_store(query, store, model, SearchOptions(n=5, **PLAIN))
        assert (found.can_tell, found.is_fitted) == (has_relevance, has_relevance)
        none = search_store(query, store, model, SearchOptions(n=5, **{**PLAIN, "where": "width > 9999"}))
        assert (none.hits, none.can_tell, none.is_fitted) == ((), has_relevance, has_relevance)
        assert found[0].path == entries[3].name
        assert found.format_relevance(found[0]) != "?" if has_relevance else found.format_relevance(found[0]) == "?"
        assert has_relevance or found.verdict == "likely"
        least = search_store(query, store, model, SearchOptions(n=5, min_relevance=1e-9, **PLAIN))
        assert bool(least) is has_relevance
    assert found.why_no_relevance == "relevance was not measured for models like this one"


def test_first_hits_do_not_depend_on_the_limit(store):
    """Else the pages of a result overlap, and the best hit of a short list is another than that of a long one."""
    random = np.random.default_rng(0)
    vectors = make_vectors(300)
    entries = [make_entry(n, caption=" ".join(random.choice(["red", "green", "blue", "7"], 3))) for n in range(300)]
    store.commit(Changes(added=list(zip(entries, vectors, strict=True))))
    options = {n: SearchOptions(n=n, where=None, hybrid=True, fold=True) for n in (1, 2, 5, 20, 100)}
    found = {n: search_store(Query(texts=("7",)), store, VectorModel(vectors), one) for n, one in options.items()}
    for n, hits in found.items():
        assert [hit.path for hit in hits] == [hit.path for hit in found[100][:n]], n


def test_common_word_counts_for_a_close_image(store):
    """More shorter captions match better than are fused at a time."""
    vectors = make_vectors(301)
    *images, query = vectors
    images[:2] = query + 0.48 * images[0], query + 0.50 * images[0]
    images[:2] = (image / np.linalg.norm(image) for image in images[:2])
    captions = ["something else", "one of 300 small pictures", *["300"] * 298]
    entries = [make_entry(n, caption=caption, fields={}) for n, caption in enumerate(captions)]
    store.commit(Changes(added=list(zip(entries, images, strict=True))))
    nearest, with_words = (
        search_store(Query(texts=("300",)), store, VectorModel(vectors), SearchOptions(n=2, **{**PLAIN, "hybrid": on}))
        for on in (False, True)
    )
    assert [hit.path for hit in nearest] == [entry.name for entry in entries[:2]]
    assert [hit.path for hit in with_words] == [entry.name for entry in entries[1::-1]]


@pytest.mark.parametrize(
    ("preset", "size", "fitted"), [("grr_coca", "tiny", True), ("coca", "tiny", True), ("open_clip_coca", "b32", False)]
)
def test_relevance_exists_only_for_bundled_models(preset, size, fitted, tmp_path):
    config: CoCaConfig = get_preset(preset, size)
    assert (curve_of(tmp_path, config) is not None) is fitted


def test_model_reads_the_curve_next_to_its_weights(tmp_path):
    config = get_preset("open_clip_coca", "b32")
    numbers = to_dict(CURVE)
    (tmp_path / RELEVANCE).write_text(json.dumps(numbers))
    assert curve_of(tmp_path, config) == CURVE
    for damaged in ("", "{}", json.dumps({**numbers, "offset": "high"}), json.dumps({**numbers, "offset": math.nan})):
        (tmp_path / RELEVANCE).write_text(damaged)
        with pytest.raises(UserError, match=RELEVANCE):
            curve_of(tmp_path, config)


# --- Duplicates


@pytest.mark.parametrize(
    ("max_distance", "min_cosine"), [(0, 0.0), (2, 0.9), (MAX_BITS, MIN_COSINE), (9, 0.99), (MAX_DISTANCE_LIMIT, 0.9)]
)
def test_groups_connect_all_pairs_within_both_limits(store, max_distance, min_cosine):
    random = np.random.default_rng(max_distance)
    kinds = random.integers(0, 12, 80)
    flips = (1 << random.integers(0, 62, (9, 80))) * (random.random((9, 80)) < 0.5)
    hashes = random.integers(-(2**63), 2**63, 12)[kinds] ^ np.bitwise_or.reduce(flips, axis=0)
    vectors = make_vectors(12)[kinds] + 0.03 * random.standard_normal((80, 32)) * random.random((80, 1))
    vectors = np.float32(np.float16(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    entries = [make_entry(number, phash=int(phash)) for number, phash in enumerate(hashes)]
    store.commit(Changes(added=list(zip(entries, vectors, strict=True))))
    names = list(range(80))
    for a, b in zip(*np.triu_indices(80, 1), strict=True):
        bits = (int(hashes[a]) ^ int(hashes[b])) & (2**64 - 1)
        if bits.bit_count() <= max_distance and (vectors[a] * vectors[b]).sum() >= min_cosine:
            names = [names[a] if name == names[b] else name for name in names]
    expected = {frozenset(n for n in range(80) if names[n] == name) for name in names}
    groups = duplicate_groups(store, max_distance, min_cosine)
    found = {frozenset(int(entry.title) for entry in group.entries) for group in groups}
    assert found == {group for group in expected if len(group) > 1}


@pytest.mark.parametrize("limits", [(-1, 0.9), (MAX_DISTANCE_LIMIT + 1, 0.9), (6, -0.1), (6, 1.1), (6, float("nan"))])
def test_rejects_limits_out_of_range(store, limits):
    with pytest.raises(UserError, match="must be from 0 to"):
        duplicate_groups(store, *limits)


def test_distinguishes_exact_copies_from_similar_images(store, capsys):
    """Two files with the same bytes, another two of their own, and one that only looks the same."""
    digests = ["a" * 32, "a" * 32, "b" * 32, "b" * 32, "c" * 32]
    entries = [
        make_entry(number, phash=7, digest=digest, width=200 - number, name=f"/photos/{number}.png")
        for number, digest in enumerate(digests)
    ]
    store.commit(Changes(added=[(entry, make_vectors(1)[0]) for entry in entries]))
    (group,) = duplicate_groups(store)
    copies = {"/photos/1.png": "/photos/0.png", "/photos/3.png": "/photos/2.png"}
    assert group.exact_copies == copies
    main(["duplicates", store.location])
    assert capsys.readouterr().out == (
        "/photos/0.png\n"
        "    /photos/1.png  (exact copy)\n"
        "    /photos/2.png\n"
        "    /photos/3.png  (exact copy of /photos/2.png)\n"
        "    /photos/4.png\n"
        f"1 group with 4 surplus images (exact copies: 2) in {Path(store.location).name}\n"
    )
    main(["duplicates", store.location, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record == {"paths": [f"/photos/{number}.png" for number in range(5)], "exact_copies": copies}


def test_exact_copies_are_found_at_any_limit(store):
    entries = [make_entry(number, digest="a" * 32) for number in range(2)]
    store.commit(Changes(added=list(zip(entries, make_vectors(2), strict=True))))
    assert len(duplicate_groups(store, 0, 1.0)) == 1
