"""`grr-coca data features`: features in a folder, which is resumed and shared by processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from encoder_graphs import WIDTH, write_graph
from support import real_pairs, with_caption, write_shard

from grr_coca.common.errors import UserError
from grr_coca.common.locks import ProcessLock
from grr_coca.data.features import FeatureCache
from grr_coca.data.preprocess import Framing
from grr_coca.data.sources.open import open_source
from grr_coca.infer import write_features as module
from grr_coca.infer.adapted.adaptation import file_digest
from grr_coca.infer.encoder import open_encoder, open_encoder_from_info, with_framing

NUM_PAIRS = 70


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "IMAGES_PER_SHARD", 32)


@pytest.fixture
def root(tmp_path):
    """Pairs, and an encoder."""
    pairs = list(real_pairs(NUM_PAIRS, "glyphs"))
    write_shard(tmp_path / "pairs.tar", pairs)
    (tmp_path / "graph").mkdir()
    write_graph(tmp_path / "graph")
    return tmp_path


def features(grr_coca, root, *more, out="features", pairs="pairs.tar"):
    name = f"onnx:{root / 'graph' / 'encoder.onnx'}"
    return grr_coca("data", "features", root / pairs, root / out, "--encoder", name, *more)


def right(root, keep):
    encoder = open_encoder(f"onnx:{root / 'graph' / 'encoder.onnx'}")
    source = open_source(str(root / "pairs.tar"))
    preprocess = encoder.info.preprocess
    pixels = [preprocess(preprocess.decode(source[i].image, source[i].name)) for i in range(len(source))]
    found = encoder.encode(np.stack(pixels))
    return found.mean() if keep == "mean" else found.tokens


@pytest.mark.parametrize("keep", ["mean", "tokens"])
def test_features_are_found_by_position_and_by_digest(grr_coca, root, keep):
    done = features(grr_coca, root, "--keep", keep)
    assert done.code == 0
    assert done.out.startswith(f"{NUM_PAIRS} images encoded")
    cache = FeatureCache(root / "features")
    expected = right(root, keep)
    assert len(cache) == NUM_PAIRS
    assert cache.header.row_shape == ((WIDTH,) if keep == "mean" else (16, WIDTH))
    for image in range(NUM_PAIRS):
        np.testing.assert_allclose(cache[image], expected[image], atol=2e-3)
        mean = expected[image] if keep == "mean" else expected[image].mean(axis=0)
        np.testing.assert_allclose(cache.mean(image), mean, atol=2e-3)
    source = open_source(str(root / "pairs.tar"))
    assert [cache.find(file_digest(source[i].image)) for i in (0, 40, 69)] == [0, 40, 69]
    assert cache.find(bytes(32)) is None


def test_bad_image_has_no_features(grr_coca, root):
    pairs = list(real_pairs(9, "glyphs"))
    pairs[5] = pairs[5].__class__(**{**vars(pairs[5]), "image": b"not an image"})
    write_shard(root / "bad.tar", pairs)
    done = features(grr_coca, root, pairs="bad.tar")
    assert done.code == 0
    assert done.out.startswith("8 images encoded")
    assert "images without features, because they cannot be read (1)" in done.err
    cache = FeatureCache(root / "features")
    assert [cache[image] is None for image in range(9)] == [image == 5 for image in range(9)]


def test_several_captions_of_an_image_have_one_row(grr_coca, root):
    pairs = list(real_pairs(6, "glyphs"))
    (root / "images").mkdir()
    rows = []
    for pair in pairs:
        (root / "images" / f"{pair.key}.webp").write_bytes(pair.image)
        rows += [{"image": f"images/{pair.key}.webp", "caption": text} for text in ("one", "two")]
    (root / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert features(grr_coca, root, pairs="table.jsonl").out.startswith("6 images encoded")


def test_interrupted_command_continues(grr_coca, root):
    features(grr_coca, root)
    expected = FeatureCache(root / "features")[50].copy()
    (root / "features" / "00001.digests.npy").unlink()
    with pytest.raises(UserError, match=r"missing shards: 1 of 3, such as 00001\.npy; run the same"):
        FeatureCache(root / "features")
    assert features(grr_coca, root).out.startswith("32 images encoded")
    np.testing.assert_array_equal(FeatureCache(root / "features")[50], expected)
    assert features(grr_coca, root).out.startswith("0 images encoded")


def test_shard_of_another_process_is_skipped(grr_coca, root):
    features(grr_coca, root)
    (root / "features" / "00002.digests.npy").unlink()
    (root / "features" / "00000.digests.npy").unlink()
    lock = ProcessLock(root / "features" / ".00002.lock")
    assert "32 images encoded" in (out := features(grr_coca, root).out)
    assert "other processes work on 6" in out
    lock.release()


@pytest.mark.ci
def test_two_processes_share_the_work(root):
    name = f"onnx:{root / 'graph' / 'encoder.onnx'}"
    code = (
        "from grr_coca.infer import write_features; write_features.IMAGES_PER_SHARD = 4; "
        "from grr_coca.cli import main; "
        f"raise SystemExit(main(['data', 'features', {str(root / 'pairs.tar')!r}, {str(root / 'features')!r}, "
        f"'--encoder', {name!r}]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(output.split()[0]) for output in outputs) == NUM_PAIRS
    cache, expected = FeatureCache(root / "features"), right(root, "mean")
    np.testing.assert_allclose([cache[image] for image in range(NUM_PAIRS)], expected, atol=2e-3)
    assert sorted(path.name for path in (root / "features").iterdir() if path.name.startswith(".")) == []


def test_folder_of_other_features_raises(grr_coca, root):
    features(grr_coca, root)
    assert "contains features with another keep; pass a new folder" in features(grr_coca, root, "--keep", "tokens").err
    assert "contains features of another encoder" in features(grr_coca, root, "--frame").err
    changed = [with_caption(real_pairs(1, "glyphs")[0], "a"), *real_pairs(NUM_PAIRS - 1, "glyphs")]
    write_shard(root / "pairs.tar", changed[:40])
    assert "contains features with another source; pass a new folder" in features(grr_coca, root).err
    (root / "else").mkdir()
    (root / "else" / "notes.txt").write_text("mine")
    assert "is not empty; pass a new folder" in features(grr_coca, root, out="else").err


def test_encoder_of_a_cache_is_opened_again(grr_coca, root):
    features(grr_coca, root, "--frame")
    info = FeatureCache(root / "features").header.encoder
    encoder = open_encoder_from_info(info)
    assert encoder.info == info
    assert encoder.info.preprocess.framing == Framing()
    plain = open_encoder(info.name)
    assert plain.info.digest != info.digest == with_framing(plain, Framing()).info.digest
    graph = root / "graph" / "encoder.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x72\x00")  # a field that no reader knows
    with pytest.raises(UserError, match="the weights or preprocessing of this encoder differ"):
        open_encoder_from_info(info)


def test_corrupt_files_raise(grr_coca, root):
    features(grr_coca, root)
    shard, path = root / "features" / "00000.npy", root / "features" / "features.json"
    for damage in (b"", b"\x93NUMPY", b"PK\x03\x04"):
        shard.write_bytes(damage)
        with pytest.raises(UserError, match=r"00000\.npy: corrupt"):
            FeatureCache(root / "features")[0]
    header = json.loads(path.read_text())
    for changes, message in [({"version": 2}, "version must be 1, got 2"), ({"num_images": 0}, "must be at least 1")]:
        path.write_text(json.dumps({**header, **changes}))
        with pytest.raises(UserError, match=message):
            FeatureCache(root / "features")
