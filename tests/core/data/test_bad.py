"""Bad samples: replaced in training by a function of (seed, epoch, index), counted exactly, named; errors elsewhere."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import encode_image, real_pairs, shard_members, warnings_of, write_tar

from grr_coca.common.errors import UserError
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.batch import Replacement
from grr_coca.data.dataset import PairDataset, ReplacementLog, make_loader
from grr_coca.data.isolated import check_image, decode_image
from grr_coca.data.order import EvaluationOrder, GlobalBatches, SampleRef, Shuffle, TrainingOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources import views
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import Chain, Subset, caption_texts, every_caption, split_valid_pairs
from grr_coca.data.tokenizer import clean_caption, train_bpe

PAIRS = real_pairs(200)
TOKENIZER = train_bpe([pair.caption for pair in PAIRS], 320)
STRONG = Augmentation(scale=(0.8, 1.2), shift=0.1, rotate=15, jitter=0.3, grey=0.2)


def bomb() -> bytes:
    """A GIF that promises 65,535 × 65,535 pixels."""
    data = bytearray(encode_image(decode_image(PAIRS[0].image, "a"), "gif"))
    data[6:10] = b"\xff\xff\xff\xff"
    return bytes(data)


SPOILERS = {
    Cause.EMPTY_FILE: lambda members, image, _: members.update({image: b""}),
    Cause.BROKEN_IMAGE: lambda members, image, _: members.update({image: members[image][: len(members[image]) // 2]}),
    Cause.NOT_AN_IMAGE: lambda members, image, _: members.update({image: b"<!doctype html><body>404 Not Found</body>"}),
    Cause.TOO_LARGE: lambda members, image, _: members.update({image: bomb()}),
    Cause.BAD_TEXT: lambda members, _, text: members.update({text: "Käse".encode("latin-1")}),
    Cause.NO_CAPTION: lambda members, _, text: members.pop(text),
    Cause.EMPTY_CAPTION: lambda members, _, text: members.update({text: b" \n"}),
    Cause.NO_IMAGE: lambda members, image, _: members.pop(image),
    Cause.DUPLICATE_KEY: lambda members, image, _: members.update({image.replace(".webp", ".png"): members[image]}),
}
"""Changes of a shard's members that make a pair bad, by cause: functions of the members, the image and the text."""
KINDS = tuple(SPOILERS)


def cmyk(pair):
    return replace(pair, image=encode_image(decode_image(pair.image, "a").convert("CMYK"), "jpeg"))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Two shards of 100 pairs, 5 % bad, every kind among them, and a CMYK image, which is none; and a cut shard.

    Returns the source and the cause of each bad sample by index.
    """
    expected, folder = {}, tmp_path_factory.mktemp("spoiled")
    with warnings_of("grr_coca.data.sources.shards"):
        for shard in range(2):
            pairs = list(PAIRS[100 * shard : 100 * shard + 100])
            members = shard_members(pairs)
            for number in range(5):
                key = pairs[19 * number + 3].key
                SPOILERS[KINDS[(5 * shard + number) % len(KINDS)]](members, f"{key}.webp", f"{key}.txt")
            colours = cmyk(pairs[50])
            members[f"{pairs[50].key}.webp"] = colours.image
            write_tar(folder / f"{shard:05d}.tar", members)
        write_tar(folder / "00002.tar", shard_members(PAIRS[:10]))
        cut = folder / "00002.tar"
        cut.write_bytes(cut.read_bytes()[: cut.read_bytes().index(PAIRS[7].image) + 10])
        source = open_source(str(folder))
    for index in range(len(source)):
        try:
            pair = source[index]
            clean_caption(pair.caption, pair.name)
            decode_image(pair.image, pair.name)
        except BadSample as error:
            expected[index] = error.cause
    return source, expected


def training(source, seed=3):
    return PairDataset(source, TOKENIZER, Preprocess(16), 40, augmentation=STRONG, seed=seed)


def test_spoiled_shards_have_expected_errors(spoiled):
    source, expected = spoiled
    # 200 pairs and the one that repeats a key; seven pairs before the cut, and the one that is cut.
    assert len(source) == 201 + 8
    assert Counter(expected.values()) == Counter([*KINDS, KINDS[0], Cause.CUT_OFF])


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("num_workers", [0, 3])
def test_counts_of_replacements_do_not_depend_on_workers(spoiled, num_workers):
    source, expected = spoiled
    order = TrainingOrder(Shuffle(len(source), seed=3), GlobalBatches(19, 22))  # two epochs of 209
    batches = list(make_loader(training(source), order, num_workers))
    assert [len(batch) for batch in batches] == [19] * 22
    replaced = [replacement for batch in batches for replacement in batch.replaced]
    for epoch in range(2):
        found = {r.sample: r.cause for r in replaced if r.epoch == epoch}
        assert found == expected
    assert len(replaced) == 2 * len(expected)
    for replacement in replaced:
        assert replacement.name == source.name(replacement.sample)
        assert replacement.container == source.container(replacement.sample)
        assert replacement.name.startswith(replacement.container)
    alone = list(make_loader(training(source), order, 0))
    for first, second in zip(batches, alone, strict=True):
        assert (first.keys, first.replaced) == (second.keys, second.replaced)
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.token_ids, second.token_ids)


def test_replacement_depends_on_seed_epoch_and_index(spoiled):
    source, expected = spoiled
    bad, other = list(expected)[:2]

    def stand_ins(seed, index=bad):
        dataset = training(source, seed)
        return [dataset[SampleRef(epoch, index)].key for epoch in range(12)]

    assert stand_ins(1) == stand_ins(1) != stand_ins(2)
    assert stand_ins(1) != stand_ins(1, other)
    assert len(set(stand_ins(1))) > 6
    keys = {source[i].key for i in range(len(source)) if i not in expected}
    assert set(stand_ins(1)) <= keys


def test_split_valid_pairs_excludes_bad_pairs(spoiled):
    source, expected = spoiled
    indices, bad = split_valid_pairs(source)
    assert indices == [i for i in range(len(source)) if i not in expected]
    assert [error.cause for error in bad] == list(expected.values())
    sound = Subset(source, indices)
    list(make_loader(PairDataset(sound, TOKENIZER, Preprocess(16), 40), EvaluationOrder(len(sound), 8), 0))


@pytest.mark.parametrize("kind", ["table", "captions"])
def test_validation_decodes_each_image_once(tmp_path, monkeypatch, kind):
    captions = [["a cat", " ", "a pet"], ["a dog", "a hound"], ["torn", "torn too"]]
    for number, pair in enumerate(PAIRS[:3]):
        (tmp_path / f"{number}.webp").write_bytes(pair.image if number < 2 else pair.image[:40])
    if kind == "table":
        rows = [f"{number}.webp,{text}" for number, texts in enumerate(captions) for text in texts]
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join(["image,caption", *rows]))
    else:
        lines = [json.dumps({"image": f"{number}.webp", "caption": texts}) for number, texts in enumerate(captions)]
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(lines))
    decoded = []
    monkeypatch.setattr(views, "check_image", lambda data, name: (decoded.append(name), check_image(data, name)))
    indices, bad = split_valid_pairs(every_caption(open_source(str(path))))
    assert len(decoded) == 3
    assert indices == [0, 2, 3, 4]
    assert [error.cause for error in bad] == [Cause.EMPTY_CAPTION, Cause.BROKEN_IMAGE, Cause.BROKEN_IMAGE]


def test_caption_texts_exclude_unreadable_captions(spoiled):
    source, expected = spoiled
    unreadable = {Cause.BAD_TEXT, Cause.NO_CAPTION, Cause.EMPTY_CAPTION, Cause.NO_IMAGE, Cause.DUPLICATE_KEY}
    unreadable |= {Cause.EMPTY_FILE, Cause.CUT_OFF}  # known from the header
    lost = sum(cause in unreadable for cause in expected.values())
    texts = list(caption_texts(source))
    assert len(texts) == len(source) - lost
    assert all(text == " ".join(text.split()) for text in texts)
    assert len(list(caption_texts(source, limit=10))) <= 10


def test_views_propagate_bad_samples(spoiled):
    source, expected = spoiled
    chain = Chain([Subset(source, [0, 1]), source])
    assert every_caption(chain) is chain
    bad = min(expected)
    with pytest.raises(BadSample):
        chain[2 + bad]
    assert chain.name(2 + bad) == source.name(bad)
    assert chain.container(0) == source.container(0)
    assert chain[3] == source[1]


def test_only_bad_samples_stop_training_at_the_first(tmp_path):
    members = {name: b"" if name.endswith("webp") else b"a cat" for name in shard_members(PAIRS[:5])}
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    with pytest.raises(UserError, match=rf"{PAIRS[2].key}: not an image.*; 100 other samples are also bad"):
        training(source)[SampleRef(0, 2)]


# --- The count


def replacements(count: int, place: str = "a.tar", cause: Cause = Cause.NOT_AN_IMAGE) -> list[Replacement]:
    return [Replacement(cause, f"{place}: {i}", place, 0, i) for i in range(count)]


def test_bad_batch_at_the_start_stops_nothing():
    log = ReplacementLog(max_share=0.1, window=1000)
    log.add(100, replacements(100))
    for _ in range(8):
        log.add(100, [])
    assert log.share == 100 / 900
    log.add(100, [])
    assert log.share == 0.1


def test_too_many_bad_samples_stop_and_name_the_shard():
    log = ReplacementLog(max_share=0.1, window=1000)
    for _ in range(20):
        log.add(100, [])
    for _ in range(5):
        log.add(100, [*replacements(2, "good.tar"), *replacements(18, "rotten.tar", Cause.BROKEN_IMAGE)])
    with pytest.raises(UserError) as caught:
        log.add(100, replacements(1, "good.tar"))
    message = str(caught.value)
    assert message.startswith("10% of the last 1,000 samples are bad, more than health: max_bad_share 0.1; ")
    assert "most of them, 90, are in rotten.tar" in message
    assert "broken or truncated image: 90, not an image: 11" in message


def test_window_drops_old_entries():
    rng = np.random.default_rng(0)
    log = ReplacementLog(max_share=1.0, window=500)
    history = []
    for _ in range(100):
        number = int(rng.integers(0, 20))
        log.add(20, replacements(number))
        history.append(number)
        recent = history[-25:]
        assert log.share == sum(recent) / (20 * len(recent))


# --- Signals


@pytest.mark.ci
def test_workers_leave_signals_to_their_parent(spoiled):
    source, _ = spoiled
    order = TrainingOrder(Shuffle(len(source), seed=3), GlobalBatches(19, 22))
    loader = iter(make_loader(training(source), order, 2))
    keys = [next(loader).keys]
    children = worker_pids()
    assert len(children) == 2
    for name in ("INT", "TERM", "USR1"):  # as a shell or a scheduler sends them, which is not their parent
        subprocess.run(["sh", "-c", f"kill -{name} {' '.join(map(str, children))}"], check=True)
    keys += [batch.keys for batch in loader]
    assert keys == [batch.keys for batch in make_loader(training(source), order, 0)]
    deadline = time.monotonic() + 60
    while worker_pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert worker_pids() == []


@pytest.mark.ci
def test_workers_end_if_a_program_does_not_close_its_loader(tmp_path):
    """Python terminates them at its exit and waits for that."""
    shard = write_tar(tmp_path / "00000.tar", shard_members(PAIRS[:20]))
    program = f"""
from grr_coca.data.dataset import PairDataset
from grr_coca.data.dataset import make_loader
from grr_coca.data.order import GlobalBatches, Shuffle, TrainingOrder
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe

source = open_source({str(shard)!r})
dataset = PairDataset(source, train_bpe(["a"], 300), Preprocess(64), 32, augmentation=Augmentation())
order = TrainingOrder(Shuffle(20, seed=0), GlobalBatches(4, 100))
left_open = iter(make_loader(dataset, order, 2))
print(len(next(left_open)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "4\n"


def worker_pids() -> list[int]:
    import multiprocessing

    return [process.pid for process in multiprocessing.active_children()]
