"""`grr-coca adapt` from pairs to a model that other commands take."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from adapted import NUM_PAIRS
from PIL import Image
from safetensors.numpy import load_file, save_file
from support import encode_image, real_pairs, snapshot, with_caption, write_shard

from grr_coca import load
from grr_coca.adapt.read_pairs import MAX_PAIRS
from grr_coca.cli import main
from grr_coca.common.errors import UserError
from grr_coca.infer.adapted.adapted_model import AdaptedModel
from grr_coca.model.checkpoint_files import base_fingerprint, fingerprint


def recall(similarity, captions, k):
    """The share of captions whose image is among the k most similar."""
    right = np.array([[one == other for other in captions] for one in captions])
    best = np.argsort(-similarity.T, axis=1)[:, :k]
    return np.take_along_axis(right, best, axis=1).any(axis=1).mean()


def test_adapted_model_finds_more_unseen_images_than_its_base(model, unseen):
    images, captions = unseen
    adapted = recall(model.similarity(images, captions), captions, 10)
    base = recall(load("icons", engine="onnx").similarity(images, captions), captions, 10)
    assert adapted > base + 0.15


def test_images_and_texts_have_one_unit_vector_each(model, unseen):
    images, captions = unseen
    vectors, texts = model.embed_images(images[:5]), model.embed_texts([*captions[:5], "zzz", "猫"])
    assert isinstance(model, AdaptedModel)
    assert vectors.shape[1] == texts.shape[1] == model.engine.embed_dim <= 512
    for rows in (vectors, texts):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.embed_images(images[3]), vectors[3], atol=1e-5)


def test_engines_agree(place, model, unseen):
    images, captions = unseen
    other = load(place / "mine", engine="torch")
    np.testing.assert_allclose(other.embed_images(images[:4]), model.embed_images(images[:4]), atol=1e-3)
    np.testing.assert_allclose(other.embed_texts(captions[:4]), model.embed_texts(captions[:4]), atol=1e-3)
    assert other.caption(images[:4]) == model.caption(images[:4])


@pytest.mark.ci
def test_captions_share_words_with_the_right_ones(model, unseen):
    images, captions = unseen

    def agreement(found):
        pairs = [(set(one.split()), set(other.split())) for one, other in zip(found, captions, strict=True)]
        return np.mean([len(one & other) / len(one | other) for one, other in pairs])

    assert agreement(model.caption(images)) > agreement(load("icons", engine="onnx").caption(images)) + 0.2


def test_describe_gives_tokens_and_ranks_captions(model, unseen):
    images, _ = unseen
    described = model.describe(images[0], num_beams=3, num_captions=3)
    assert len({caption.text for caption in described.captions}) == 3
    for caption in described.captions:
        assert model.tokenizer.decode(caption.token_ids) == caption.text
        assert len(caption.log_probs) == len(caption.token_ids)
        assert max(caption.log_probs) < 0
    np.testing.assert_allclose(described.embedding, model.embed_images(images[0]), atol=1e-5)


def test_log_probs_equal_those_of_the_decoder(model, unseen):
    base = load("icons", engine="torch")
    images, _ = unseen
    caption = model.describe(images[0]).captions[0]
    pixels = base.preprocess(Image.open(images[0]).convert("RGB"))[None]
    encoded = base.engine.encode_images(pixels)
    decoder = base.engine.decoder(encoded, num_prompt=1, max_tokens=len(caption.token_ids))
    read = [base.tokenizer.bos_id, *caption.token_ids[:-1]]
    expected = [
        float(decoder.step(np.array([[token]])).log_probs_of(np.array([[target]]))[0, 0])
        for token, target in zip(read, caption.token_ids, strict=True)
    ]
    np.testing.assert_allclose(caption.log_probs, expected, atol=2e-3)


def test_prompt_is_continued_by_the_decoder(model, unseen):
    assert model.caption(unseen[0][0], prompt="arrow").startswith("arrow")


@pytest.mark.ci
def test_index_finds_an_unseen_image_by_its_words(grr_coca, place, unseen):
    images, captions = unseen
    found = 0
    for path, caption in list(zip(images, captions, strict=True))[:12]:
        result = grr_coca("search", place / "index", caption, "--json", "-n", 10)
        assert result.code == 0
        hits = json.loads(result.out)
        found += any(hit["path"] == str(path) for hit in hits)
    assert found >= 6


def test_image_finds_itself(grr_coca, place, unseen):
    result = grr_coca("search", place / "index", "--image", unseen[0][7], "--json", "-n", 3)
    assert json.loads(result.out)[0]["path"] == str(unseen[0][7])


def test_image_query_ranks_as_the_base_less_the_mean(model, unseen):
    images, _ = unseen
    vectors = model.embed_images(images)
    base = load("icons", engine="onnx").embed_images(images)
    centred = base - model.adaptation.arrays.image_mean
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    similar = model.image_queries(vectors) @ vectors.T
    share = model.adaptation.header.values.plain_share
    np.testing.assert_allclose(similar, centred @ centred.T * np.sqrt(share / (1 + share)), atol=2e-3)


def test_rejects_an_index_of_the_base(refused, place, tmp_path):
    assert main(["index", str(place / "unseen"), "--out", str(tmp_path / "index"), "-c", "icons"]) == 0
    assert "embeddings are not comparable" in refused("search", tmp_path / "index", "arrow", "-c", place / "mine")
    assert "embeddings are not comparable" in refused("search", place / "index", "arrow", "-c", "icons")


def test_folder_has_the_base_and_its_own_fingerprint(place, model):
    base = load("icons")
    assert base_fingerprint(place / "mine") == base.fingerprint == model.adaptation.header.base_fingerprint
    assert model.fingerprint != base.fingerprint


@pytest.mark.ci
def test_again_gives_the_same_model_and_a_report(grr_coca, place, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca.cli.progress.SECONDS_BETWEEN_LINES", -1)
    result = grr_coca("adapt", place / "pairs.tar", "--out", tmp_path / "again", "--json")
    progress = [int(share) for share in re.findall(r"adapt: (\d+)%", result.err)]
    assert len(progress) > 5
    assert progress == sorted(progress)
    report = json.loads(result.out)
    assert report["images"] == NUM_PAIRS
    new = report["retrieval"]["new/adapted"]
    assert report["retrieval"]["new/chance"]["text_to_image/R@10"] < new["text_to_image/R@10"] <= 1
    assert set(report["learning_curve"]) == {"0.25", "0.5", "1.0"}
    page = (place / "mine" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") >= 12
    assert "nearest neighbour" in page
    assert fingerprint(place / "mine") == fingerprint(tmp_path / "again")


@pytest.mark.ci
def test_more_pairs_reuse_stored_features(grr_coca, place, tmp_path):
    """A stored feature that was changed shows that it is used again."""
    pairs = real_pairs(NUM_PAIRS, "glyphs")
    write_shard(tmp_path / "pairs.tar", pairs[:40])
    assert grr_coca("adapt", tmp_path / "pairs.tar", "--out", tmp_path / "mine").code == 0
    write_shard(tmp_path / "pairs.tar", pairs[:60])
    result = grr_coca("adapt", tmp_path / "pairs.tar", "--out", tmp_path / "mine", "--json")
    assert result.code == 0, result.err
    assert (json.loads(result.out)["images"], json.loads(result.out)["reused_images"]) == (60, 40)


@pytest.mark.ci
def test_several_captions_of_an_image_all_count(grr_coca, tmp_path):
    pairs = real_pairs(20, "glyphs")
    lines = ["file_name,caption"]
    for pair in pairs:
        (tmp_path / f"{pair.key}.webp").write_bytes(pair.image)
        lines += [f"{pair.key}.webp,{pair.caption}", f"{pair.key}.webp,another {pair.caption}"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    result = grr_coca("adapt", tmp_path / "metadata.csv", "--out", tmp_path / "mine", "--json")
    report = json.loads(result.out)
    assert (report["images"], report["pairs"]) == (20, 40)


@pytest.mark.ci
def test_broken_images_are_skipped_and_counted(grr_coca, tmp_path):
    pairs = list(real_pairs(40, "glyphs"))
    pairs[3] = replace(pairs[3], image=b"no picture")
    write_shard(tmp_path / "pairs.tar", pairs)
    result = grr_coca("adapt", tmp_path / "pairs.tar", "--out", tmp_path / "mine", "--json")
    assert result.code == 0
    assert json.loads(result.out)["skipped_pairs"] == 1
    assert "skipped 1 pair that cannot be used" in result.err


@pytest.mark.ci
def test_classes_give_a_result_and_a_hint(grr_coca, tmp_path):
    pairs = [with_caption(pair, pair.caption.split()[0]) for pair in real_pairs(60, "glyphs")]
    kinds = {pair.caption for pair in pairs}
    pairs = [pair if pair.caption in ("latin", "greek") else with_caption(pair, "other") for pair in pairs]
    assert len(kinds) > 2
    write_shard(tmp_path / "pairs.tar", pairs)
    result = grr_coca("adapt", tmp_path / "pairs.tar", "--out", tmp_path / "mine")
    assert result.code == 0, result.err
    assert "grr-coca classify" in result.out
    assert "learning curve, R@1: 25%" in result.out
    assert re.search(r"from half of them to all, R@1 (grew|changed) by [+-]?\d+", result.out)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pairs: pairs[:2], "too few pairs, 2; adapt needs at least 10 images with captions"),
        (lambda pairs: [with_caption(pair, "one") for pair in pairs], "all captions are equal"),
        (lambda pairs: [replace(pair, image=pairs[0].image) for pair in pairs], "too few different images, 1"),
        (lambda pairs: [replace(pair, image=b"x") for pair in pairs], r"pairs that cannot be read: 20"),
        (lambda pairs: [replace(pair, image=blank(number)) for number, pair in enumerate(pairs)], "look the same"),
    ],
)
def test_unusable_pairs_get_one_line(grr_coca, tmp_path, make, message):
    write_shard(tmp_path / "pairs.tar", make(list(real_pairs(20, "glyphs"))))
    result = grr_coca("adapt", tmp_path / "pairs.tar", "--out", tmp_path / "mine")
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "mine").exists()


def blank(number):
    return encode_image(Image.new("RGB", (64 + number, 64 + number), "white"))


def test_rejects_too_many_pairs_before_reading_them(grr_coca, tmp_path):
    rows = "\n".join(f"{number}.png,caption {number}" for number in range(MAX_PAIRS + 1))
    (tmp_path / "0.png").write_bytes(blank(0))
    (tmp_path / "pairs.csv").write_text(f"image,caption\n{rows}\n")
    result = grr_coca("adapt", tmp_path / "pairs.csv", "--out", tmp_path / "mine")
    assert result.code == 2
    assert "50,001 pairs; adapt accepts at most 50,000; train on more: grr-coca finetune" in result.err
    assert "memory" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["adapt", "pairs.tar", "-c", "mine", "--out", "new"],
            "mine: an adapted model cannot be adapted again; pass its base model, icons",
        ),
        (["adapt", "pairs.tar", "--out", "unseen"], "which would be deleted; pass a new folder to --out"),
        (["adapt", "pairs.tar", "--out", "pairs.tar"], "expected a folder, found a file"),
        (["match", "unseen", "unseen", "-c", "mine"], "match does not support adapted models"),
        (["lint", "unseen", "-c", "mine"], "lint does not support adapted models"),
        (["caption", "unseen", "-c", "mine", "--tags", "3"], "this model has no tags"),
        (["evaluate", "mine", "--data", "pairs.tar", "--task", "loss"], "has no loss; use --task retrieval"),
        (["export", "open_clip", "-c", "mine", "--out", "new"], "export open_clip does not support adapted models"),
    ],
)
def test_invalid_use_prints_one_line(grr_coca, place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    before = {path.name for path in place.iterdir()}
    result = grr_coca(*arguments)
    assert result.code == 2
    assert message in result.err
    assert {path.name for path in place.iterdir()} == before


def test_push_names_published_files(grr_coca, place):
    result = grr_coca("push", place / "mine", "someone/mine", "--licence", "mit", "--dry-run")
    assert result.code == 0, result.err
    assert "captions and image features of the pairs" in result.err
    assert {"adapted.json", "adapted.safetensors", "features.safetensors"} <= set(result.out.split())
    assert "report.html" not in result.out


@pytest.mark.parametrize("name", ["adapted.json", "adapted.safetensors", "features.safetensors"])
def test_corrupt_files_are_reported(place, tmp_path, name):
    files = snapshot(place / "mine")
    folder = tmp_path / "mine"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content[:-20] if file == name else content)
    with pytest.raises(UserError, match=name):
        load(folder)


def test_mismatched_arrays_are_reported(place, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file, content in snapshot(place / "mine").items():
        (folder / file).write_bytes(content)
    (folder / "manifest.json").unlink()
    arrays = load_file(folder / "adapted.safetensors")
    save_file({**arrays, "dual": arrays["dual"][:-1]}, folder / "adapted.safetensors")
    with pytest.raises(UserError, match="does not match"):
        load(folder, engine="torch")
