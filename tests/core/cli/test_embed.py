"""`grr-coca embed`."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from support import no_space_left, snapshot

from grr_coca.data.image_files import ImageFile
from grr_coca.infer.load import load
from grr_coca.infer.outputs.vector_files import VectorBuffer, write_vectors


def read(path):
    """Keys and vectors, as another program would read them."""
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return json.loads(file.metadata()["keys"]), file.get_tensor("embeddings")
    if path.suffix == ".npy":
        keys = path.with_suffix(".keys.txt").read_bytes().decode("utf-8", "surrogateescape").splitlines()
        return keys, np.load(path)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return table["key"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


FORMATS = [".safetensors", ".npy", ".parquet"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_images_are_embedded_with_their_paths_as_keys(grr_coca, run, image_files, tmp_path, suffix):
    out = tmp_path / "new" / f"vectors{suffix}"
    result = grr_coca("embed", *image_files, "-c", run.folder, "--out", out, "--batch-size", 2)
    assert result.code == 0, result.err
    assert result.out == f"3 embeddings of 128 numbers written to {out}\n"
    keys, vectors = read(out)
    assert keys == [str(path) for path in image_files]
    np.testing.assert_allclose(vectors, load(run.folder).embed_images(image_files), atol=1e-6)
    assert vectors.dtype == np.float32
    assert len(list(out.parent.iterdir())) == (2 if suffix == ".npy" else 1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_texts_are_embedded_with_themselves_as_keys(grr_coca, run, tmp_path, suffix):
    (tmp_path / "texts.txt").write_text("\ufeffa cat\n\n  red   heart\ncafé\n", encoding="utf-8")
    out = tmp_path / f"vectors{suffix}"
    result = grr_coca("embed", "--texts", tmp_path / "texts.txt", "-c", run.folder, "--out", out)
    assert result.code == 0, result.err
    keys, vectors = read(out)
    assert keys == ["a cat", "red heart", "café"]
    np.testing.assert_allclose(vectors, load(run.folder).embed_texts(keys), atol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
def test_keys_that_are_not_utf8_can_be_written(grr_coca, run, image_files, tmp_path, suffix):
    name = os.fsencode(image_files[0].parent) + b"/caf\xe9.webp"
    image_files[0].rename(os.fsdecode(name))
    out = tmp_path / f"vectors{suffix}"
    assert grr_coca("embed", os.fsdecode(name), "-c", run.folder, "--out", out).code == 0
    (key,), _ = read(out)
    assert os.fsencode(key) == name or (suffix == ".parquet" and key.endswith(r"caf\udce9.webp"))


def test_unreadable_images_get_no_row(grr_coca, run, image_files, tmp_path):
    image_files[1].write_bytes(b"no image")
    result = grr_coca("embed", *image_files, "-c", run.folder, "--out", tmp_path / "v.npy")
    assert result.code == 0
    assert f"1 of 3 images failed:\n  {image_files[1]}: not an image" in result.err
    keys, vectors = read(tmp_path / "v.npy")
    assert keys == [str(image_files[0]), str(image_files[2])]
    assert len(vectors) == 2


def test_vectors_are_in_memory_once():
    files = [ImageFile(str(number)) for number in range(32)]
    tracemalloc.start()
    collected = VectorBuffer(100_000)
    for batch in range(200):
        collected.add(files, list(np.full((32, 128), batch, np.float32)))
    taken = tracemalloc.get_traced_memory()[1] - 100_000 * 128 * 4
    tracemalloc.stop()
    assert collected.vectors.shape == (200 * 32, 128)
    assert collected.vectors[::32, 0].tolist() == list(range(200))
    assert taken < 1_000_000


def test_when_all_fail_nothing_is_written(grr_coca, run, tmp_path):
    result = grr_coca("embed", tmp_path / "cat.png", "-c", run.folder, "--out", tmp_path / "v.npy")
    assert (result.code, result.out) == (1, "")
    assert snapshot(tmp_path) == {}


def test_failed_write_leaves_what_was_there(refused, grr_coca, run, image_files, tmp_path, monkeypatch):
    out = tmp_path / "v.safetensors"
    grr_coca("embed", image_files[0], "-c", run.folder, "--out", out)
    before = snapshot(tmp_path)

    monkeypatch.setattr(os, "fsync", no_space_left)
    assert f"{out}: cannot be written (No space left on device)" in refused(
        "embed", *image_files, "-c", run.folder, "--out", out
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("exists", [True, False])
def test_write_follows_a_link(grr_coca, run, image_files, tmp_path, exists):
    target, link = tmp_path / "elsewhere" / "v.npy", tmp_path / "link.npy"
    if exists:
        target.parent.mkdir()
        target.write_bytes(b"before")
    link.symlink_to(target)
    assert grr_coca("embed", image_files[0], "-c", run.folder, "--out", link).code == 0
    assert link.is_symlink()
    assert np.load(target).shape[0] == 1


def test_each_key_has_one_line_with_any_line_ends(tmp_path):
    write_vectors(tmp_path / "a.npy", ["a\rb.png", "c\u2028d.png", "e\nf.png"], np.zeros((3, 2), np.float32))
    assert read(tmp_path / "a.npy")[0] == [r"a\rb.png", r"c\u2028d.png", r"e\nf.png"]


def test_rejects_too_many_keys_for_safetensors(refused, run, image_files, tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca.infer.outputs.vector_files.MAX_HEADER_BYTES", 100)
    message = refused("embed", *image_files, "-c", run.folder, "--out", tmp_path / "v.safetensors")
    assert "use .parquet or .npy" in message
    assert "embedded" not in message, "before the work"
