"""Fresh tests of icons: what leaves training, and that the corpus stays as it is."""

import fnmatch
import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ICONS_ADAMW = Path(__file__).parents[2] / "studies" / "icons_adamw"


@pytest.fixture
def set_apart():
    """The script, imported."""
    spec = importlib.util.spec_from_file_location("set_apart", ICONS_ADAMW / "set_apart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recipe_reads_exactly_the_shards_set_apart():
    shards = json.loads((ICONS_ADAMW / "set_apart.json").read_text(encoding="utf-8"))
    data = yaml.safe_load((ICONS_ADAMW / "icons.yaml").read_text(encoding="utf-8"))["data"]
    patterns = [data["train"], data["val"], *data["test"].values()]
    read = {pattern: fnmatch.filter([f"cache:icons-apart/{name}" for name in shards], pattern) for pattern in patterns}
    assert all(read.values())
    assert sum(map(len, read.values())) == len(shards)


def test_shards_with_other_bytes_are_named(set_apart, tmp_path, monkeypatch, capsys):
    for folder in ("source", "target"):
        (tmp_path / folder).mkdir()
    pair = set_apart.Pair("ph_a", b"a", b"a", b"")
    set_apart._write(tmp_path / "source" / "train-00000.tar", [pair])
    monkeypatch.setattr(set_apart, "NUM_KNOWN", {})
    monkeypatch.setattr(set_apart, "DIGESTS_FILE", tmp_path / "digests.json")
    monkeypatch.setattr("sys.argv", ["", "--source", f"{tmp_path / 'source'}", "--target", f"{tmp_path / 'target'}"])
    before = set_apart.digests(tmp_path / "source")
    for found, code in (({"val_known-00000.tar": "0"}, 1), (None, 0)):
        found = set_apart.digests(tmp_path / "target") if found is None else found
        (tmp_path / "digests.json").write_text(json.dumps(found), encoding="utf-8")
        assert set_apart.main() == code
    assert "train-00000.tar, val_known-00000.tar" in capsys.readouterr().err
    assert set_apart.digests(tmp_path / "source") == before, "the shards of the corpus are only read"


@pytest.mark.ci
def test_held_out_icons_leave_training_with_their_variants(set_apart, tmp_path, monkeypatch):
    module = set_apart
    monkeypatch.setattr(module, "NUM_KNOWN", {"test_known": 30, "val_known": 10})
    monkeypatch.setattr(module, "MAX_APART", 20)
    families = {"lucide": "feather", "feather": "feather", "ph": "ph", "uil": "uil"}
    made = [
        module.Pair(
            f"{prefix}_{thing}{variant}", f"{prefix}{number}{variant}".encode(), thing.encode(), b'{"captions": []}'
        )
        for number, thing in enumerate(f"thing {i}" for i in range(90))
        for prefix in families
        for variant in ("", "-filled")
    ]
    (tmp_path / "source").mkdir()
    for number in range(2):
        module._write(tmp_path / "source" / f"train-{number:05d}.tar", made[number::2])
    found = {}
    for name in ("once", "again"):
        module.set_apart(tmp_path / "source", tmp_path / name, families)
        found[name] = {shard.name: shard.read_bytes() for shard in (tmp_path / name).iterdir()}
    assert found["once"] == found["again"]
    splits = defaultdict(list)
    for shard in sorted((tmp_path / "once").iterdir()):
        splits[shard.name.rsplit("-", 1)[0]] += module.pairs_of(shard)

    def things(pairs):
        return {(families[pair.key.partition("_")[0]], pair.caption) for pair in pairs}

    sizes = {split: len(pairs) for split, pairs in splits.items() if split != "train"}
    assert sizes == {"test_known": 30, "val_known": 10, "test_apart_ph": 20, "test_apart_uil": 20}
    evaluated = [pair for split, pairs in splits.items() if split != "train" for pair in pairs]
    assert not things(splits["train"]) & things(evaluated)
    assert {family for family, _ in things(splits["train"])} == {"feather"}
    known = [pair.caption for split in ("test_known", "val_known") for pair in splits[split]]
    assert len(known) == len(set(known))
    assert len(splits["train"]) == 2 * 2 * (90 - 40), "all variants of a thing in a family leave training"
    assert all(pair in made for pair in splits["train"])
    assert not any(pair.more for pair in evaluated)
