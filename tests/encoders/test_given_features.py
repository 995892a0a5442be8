"""`grr-coca data features --given`: features that were computed elsewhere, in the files that people keep them in."""

import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from encoder_graphs import WIDTH
from test_features import NUM_PAIRS, features, right, root  # noqa: F401 (`root` is a fixture)

from grr_coca.common.errors import UserError
from grr_coca.data.features import FeatureCache
from grr_coca.data.given_features import open_given_features
from grr_coca.data.sources.open import open_source

FORMATS = ["npy", "npy of means", "parquet", "parquet in order", "files", "h5", "h5 in order", "h5 files"]


def write_given(folder, kind, names, tokens):
    """Write features; names are shuffled where there are names."""
    mixed = np.random.default_rng(0).permutation(len(names))
    if kind.startswith("npy"):
        path = folder / "given.npy"
        np.save(path, tokens.mean(axis=1) if kind == "npy of means" else tokens)
    elif kind.startswith("parquet"):
        path, order = folder / "given.parquet", mixed if kind == "parquet" else range(len(names))
        columns = {"features": [list(map(list, tokens[i])) for i in order], "area": [1.5] * len(names)}
        if kind == "parquet":
            columns["image"] = [f"elsewhere/{names[i]}.png" for i in order]
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=16)
    elif kind == "files":
        path = folder / "given"
        (path / "inner").mkdir(parents=True)
        for i in mixed:
            np.save(path / "inner" / f"{names[i]}.npy", tokens[i])
    else:
        h5py = pytest.importorskip("h5py")
        path = folder / ("given" if kind == "h5 files" else "given.h5")
        if kind == "h5 files":
            path.mkdir()
            for i in mixed:
                with h5py.File(path / f"{names[i]}.h5", "w") as file:
                    file["features"], file["coords"] = tokens[i][None], np.zeros((len(tokens[i]), 2))
        else:
            with h5py.File(path, "w") as file:
                if kind == "h5 in order":
                    file["all"] = tokens
                else:
                    for i in mixed:
                        file[f"slides/{names[i]}"] = tokens[i]
    return path


@pytest.fixture
def names(root):  # noqa: F811
    source = open_source(str(root / "pairs.tar"))
    return [source[i].key for i in range(len(source))]


@pytest.mark.parametrize("kind", FORMATS)
def test_features_are_read_in_every_format(tmp_path, kind):
    names = [f"s{number}" for number in range(20)]
    tokens = np.random.default_rng(1).standard_normal((20, 3, WIDTH)).astype(np.float32)
    given = open_given_features(write_given(tmp_path, kind, names, tokens))
    found = [given.find(number, name).mean(axis=0) for number, name in enumerate(names)]
    np.testing.assert_allclose(found, tokens.mean(axis=1), atol=1e-6)


def test_number_of_tokens_may_differ(grr_coca, root, names):  # noqa: F811
    tokens = right(root, "tokens")
    (root / "given").mkdir()
    for number, name in enumerate(names):
        repeated = np.concatenate([tokens[number]] * (1 + number % 3))
        np.save(root / "given" / f"{name}.npy", repeated)
    done = features(grr_coca, root, "--given", root / "given")
    folders = (root / "features", root / "given")
    assert done.out.startswith("0 images encoded to {}; features of 70 taken from {}".format(*folders))
    cache = FeatureCache(root / "features")
    np.testing.assert_allclose([cache[image] for image in range(NUM_PAIRS)], right(root, "mean"), atol=2e-3)
    done = features(grr_coca, root, "--given", root / "given", "--keep", "tokens", out="all")
    assert done.code == 2
    assert "an image has 32 tokens, but onnx:" in done.err
    assert "computes 16; store their mean with --keep mean" in done.err


def test_images_without_features_are_encoded(grr_coca, root, names):  # noqa: F811
    tokens = right(root, "tokens")
    given = write_given(root, "files", names[:50], tokens[:50])
    done = features(grr_coca, root, "--given", given, "--keep", "tokens")
    assert done.out.startswith("20 images encoded")
    assert "features of 50 taken from" in done.out
    cache = FeatureCache(root / "features")
    np.testing.assert_allclose([cache[image] for image in range(NUM_PAIRS)], tokens, atol=2e-3)


def test_features_of_another_encoder_raise(grr_coca, root, names):  # noqa: F811
    tokens = right(root, "tokens")
    for kind, wrong, reason in (
        ("npy", tokens[::-1], r"are neither the tokens of onnx:"),
        ("files", tokens[:, :, 1:], f"has features of width {WIDTH - 1}"),
        ("npy", tokens[:-1], r"69 rows do not match 70 images"),
        ("npy", tokens[:, :, :, None], r"has the shape \(70, 16, \d+, 1\)"),
    ):
        given = write_given(root, kind, names, wrong)
        done = features(grr_coca, root, "--given", given)
        assert done.code == 2
        assert re.search(reason, done.err)
        assert not (root / "features").exists()
    (given := root / "named").mkdir()
    np.save(given / "another.npy", tokens[0])
    assert "has no features of these images" in features(grr_coca, root, "--given", given).err


def test_files_without_features_raise(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], object), allow_pickle=True)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"x": [[0.5]], "y": [[0.5]]}), tmp_path / "c.parquet")
    (tmp_path / "d.pt").touch()
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "f.parquet")
    (tmp_path / "e").mkdir()
    for name, message in (
        ("a.npy", "its features cannot be read"),
        ("b.parquet", "its features cannot be read"),
        ("c.parquet", "expected one column with lists of numbers, found x, y; rename the column of features"),
        ("d.pt", "unsupported feature format"),
        ("e", "has no .npy or HDF5 file"),
        ("missing.npy", "no such file or folder"),
        ("f.parquet", "found none; store the features as lists of floats"),
    ):
        with pytest.raises(UserError, match=message):
            open_given_features(tmp_path / name)


def test_ambiguous_image_name_raises(tmp_path):
    for name in ("a/x", "b/x", "b/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.full((2, 3), ord(name[0]), np.float32))
    given = open_given_features(tmp_path)
    assert given.find(0, "b/x")[0, 0] == ord("b")
    assert given.find(0, "x") is None
    assert given.find(0, "other/y")[0, 0] == ord("b")
