"""A run: a function of its recipe, from the data to a checkpoint."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from model_configs import model_keys
from support import (
    ALONE,
    BATCH_SIZE,
    CPU,
    PairsInMemory,
    differing,
    finetuning,
    pretrain,
    real_pairs,
    shard_members,
    silent,
    tiny_recipe,
    warnings_of,
    weights,
    with_caption,
    write_shard,
    write_tar,
)

from grr_coca.common.errors import DiskError, UserError
from grr_coca.common.ranks import Ranks
from grr_coca.data.dataset import ReplacementLog
from grr_coca.data.sources.open import open_source
from grr_coca.evaluate.caption_split import CaptionedSplit
from grr_coca.evaluate.split import Evaluation
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.model.checkpoint_files import BEST_FILE
from grr_coca.train import loop
from grr_coca.train.logs import LOG_FILE, MetricLog, Progress, device_use, read_metrics
from grr_coca.train.loop import Validation, train
from grr_coca.train.optimizer import FROZEN_MODULES
from grr_coca.train.recipe import (
    CheckpointRecipe,
    EvaluationRecipe,
    FailureLimits,
    LossRecipe,
    OptimizerRecipe,
    ScheduleRecipe,
    TokenizerRecipe,
    load_recipe,
    save_recipe,
)
from grr_coca.train.setup import fit_start, new_checkpoint, readable_validation, training_sources


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "pairs.tar", real_pairs(16))


def first_losses(recipe, start, out) -> dict[str, float]:
    """The losses of the first step, before any weight has changed."""
    once = replace(recipe, schedule=ScheduleRecipe(steps=1, warmup_steps=1))
    train(once, start, out, ALONE, silent)
    return read_metrics(out, "train")[0]


# --- What a run leaves


def test_run_leaves_its_recipe_its_log_and_one_checkpoint(run):
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "recipe.yaml",
        "tensorboard",
    ]
    assert any((run.folder / "tensorboard").iterdir())
    assert run.checkpoint.name == "step-000000003"


def test_log_has_the_documented_loss_names(run):
    (trained,) = read_metrics(run.folder, "train")
    (val,) = read_metrics(run.folder, "val")
    assert trained["step"] == val["step"] == 3
    assert {"contrastive", "captioning", "coca", "grad_norm", "lr"} <= trained.keys()
    assert "pairs_per_second" not in trained, "a log with times in it is never the same twice"
    assert {
        field
        for field in Evaluation.__dataclass_fields__
        if "image" not in field and field not in ("chance", "median_rank")
    } <= val.keys()
    assert {f"{way}/R@{k}" for way in ("text_to_image", "image_to_text", "chance") for k in (1, 5, 10)} <= val.keys()


def test_tensorboard_table_escapes_bars_in_captions(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricLog(tmp_path, Progress()) as log:
        log.captions(1, CaptionedSplit(("folder/a|b.png",), ("said | so",), (("true", "too"),)))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (table,) = (shown.tensor_proto.string_val[0].decode() for shown in board.Tensors("captions/text_summary"))
    assert table.splitlines() == [
        "| image | caption | reference |",
        "|---|---|---|",
        "| a\\|b.png | said \\| so | true |",
    ]


def test_training_reduces_the_loss_and_logs_every_step(shard, tmp_path):
    steps = {}
    trained = pretrain(tiny_recipe(shard, steps=21), tmp_path / "run", steps.__setitem__)
    assert list(steps) == [10, 20, 21]
    assert steps[21]["coca"] < steps[10]["coca"] - 0.5
    assert differing(weights(trained), weights(from_pretrained(tmp_path / "run"))) == [], "what is on disk is returned"


def test_validates_and_saves_at_intervals_and_at_the_end(shard, tmp_path):
    recipe = tiny_recipe(shard, steps=5, evaluation=EvaluationRecipe(interval=2, batch_size=BATCH_SIZE))
    pretrain(recipe, tmp_path / "run")
    assert [row["step"] for row in read_metrics(tmp_path / "run", "val")] == [2, 4, 5]
    folders = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(folders) == ["step-000000004", "step-000000005"], "the newest two are kept"


# --- A run is a function of its recipe


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe,
        lambda recipe: replace(recipe, evaluation=EvaluationRecipe(interval=1, batch_size=BATCH_SIZE)),
        lambda recipe: replace(recipe, data=replace(recipe.data, num_workers=1)),
    ],
    ids=["again", "validated after each step", "with a worker"],
)
def test_same_seed_is_reproducible_with_any_loader(run, tmp_path, change):
    pretrain(change(run.recipe), tmp_path / "again")
    assert differing(weights(from_pretrained(run.folder)), weights(from_pretrained(tmp_path / "again"))) == []
    if change(run.recipe) == run.recipe:
        assert (run.folder / "metrics.jsonl").read_bytes() == (tmp_path / "again" / "metrics.jsonl").read_bytes()


def test_recipe_saved_by_a_run_equals_its_recipe(run):
    assert load_recipe(run.folder / "recipe.yaml") == run.recipe


def test_loss_weights_scale_the_losses(run, tmp_path):
    recipe = replace(run.recipe, losses=LossRecipe(contrastive_weight=0.5, captioning_weight=3.0))
    losses = first_losses(recipe, new_checkpoint(recipe, ALONE), tmp_path / "run")
    assert losses["coca"] == pytest.approx(0.5 * losses["contrastive"] + 3.0 * losses["captioning"])


@pytest.mark.parametrize(
    ("losses", "name"),
    [(LossRecipe(0.0, 2.0), "adamw"), (LossRecipe(1.0, 0.0), "muon")],
    ids=["captions", "contrast"],
)
def test_zero_weight_trains_on_the_other_loss(shard, tmp_path, name, losses):
    recipe = tiny_recipe(shard, steps=2, losses=losses, optimizer=OptimizerRecipe(name))
    pretrain(recipe, tmp_path / "run")
    assert read_metrics(tmp_path / "run", "train")[0]["coca"] > 0


# The other presets are other arrangements of the parts that these have; all of them build, in `test_presets`. Other
# keys of a recipe's model are trained in `test_options`.
@pytest.mark.parametrize("name", ["coca", "grr_coca_plus", "grr_coca+stem"])
def test_every_kind_of_model_trains(shard, tmp_path, name):
    recipe = tiny_recipe(shard, steps=1)
    recipe = replace(recipe, model=replace(recipe.model, **model_keys(name)))
    pretrain(recipe, tmp_path / "run")
    assert from_pretrained(tmp_path / "run").preset == recipe.model.preset


@pytest.mark.ci
def test_model_with_clips_vocabulary_trains(shard, tmp_path):
    recipe = tiny_recipe(shard, steps=1, tokenizer=TokenizerRecipe("clip"))
    assert pretrain(recipe, tmp_path / "run").config.text_decoder.vocab_size == 49_408


def test_clips_vocabulary_takes_no_size(shard, tmp_path):
    recipe = tiny_recipe(shard, steps=1, tokenizer=TokenizerRecipe("clip", vocab_size=4096))
    with pytest.raises(UserError, match=r"tokenizer: vocab_size 4096 does not match kind 'clip'.* remove vocab_size"):
        new_checkpoint(recipe, ALONE)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe, "what a run wrote before is still read"


def test_padding_id_0_needs_the_clip_vocabulary(shard):
    recipe = tiny_recipe(shard)
    recipe = replace(recipe, model=replace(recipe.model, preset="open_clip_coca"))
    with pytest.raises(
        UserError, match=r"kind 'bpe' does not match model: preset 'open_clip_coca'.* set kind to 'clip'"
    ):
        new_checkpoint(recipe, ALONE)
    clip = replace(recipe, tokenizer=TokenizerRecipe("clip"))
    assert new_checkpoint(clip, ALONE).config.architecture == "open_clip"


@pytest.mark.parametrize(("minutes", "saved"), [(0.0, [1, 2, 3, 4]), (60.0, [4])])
def test_run_is_saved_every_so_many_minutes(shard, tmp_path, minutes, saved):
    kept = CheckpointRecipe(interval=100, minutes=minutes, keep_last=9)
    pretrain(tiny_recipe(shard, steps=4, checkpoints=kept), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [f"step-{n:09}" for n in saved]


def test_best_checkpoint_of_a_fine_tuning_is_kept(run, shard, tmp_path, monkeypatch):
    """Its steps are counted from those of its start."""
    scores = iter([2.0, 1.0, 3.0])
    validate = Validation.run

    def scored(self, checkpoint):
        validated = validate(self, checkpoint)
        return replace(validated, scores={**validated.scores, "coca_loss": next(scores)})

    monkeypatch.setattr(Validation, "run", scored)
    recipe = finetuning(
        tiny_recipe(shard, steps=3),
        evaluation=EvaluationRecipe(interval=1, batch_size=BATCH_SIZE),
        checkpoints=CheckpointRecipe(keep_best="coca_loss", keep_last=1),
    )
    train(recipe, from_pretrained(run.folder), tmp_path / "run", ALONE, silent)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000000005", "step-000000006"]
    assert json.loads((folder / BEST_FILE).read_text()) == {"step": 5}


def test_best_checkpoint_can_be_chosen_by_a_recall(shard, tmp_path):
    score = "image_to_text/R@5"
    recipe = tiny_recipe(
        shard,
        steps=3,
        evaluation=EvaluationRecipe(interval=1, batch_size=BATCH_SIZE),
        checkpoints=CheckpointRecipe(keep_best=score),
    )
    pretrain(recipe, tmp_path / "run")
    logged = {row["step"]: row for row in read_metrics(tmp_path / "run", "val")}
    best = max(logged, key=lambda step: logged[step][score])  # the first of equal ones
    assert json.loads((tmp_path / "run" / "checkpoints" / BEST_FILE).read_text()) == {"step": best}
    recalls = [logged[best][f"{way}/R@{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert logged[best]["mean_recall"] == pytest.approx(sum(recalls) / 6)


# --- What goes wrong


def test_excessive_learning_rate_stops_with_advice(shard, tmp_path):
    recipe = tiny_recipe(shard, steps=12, optimizer=OptimizerRecipe(lr=1e30))
    with pytest.raises(UserError, match="lower optimizer: lr"):
        pretrain(recipe, tmp_path / "run")


@pytest.mark.parametrize(("max_bad_share", "stops"), [(0.1, True), (0.2, False)])
def test_run_stops_at_the_maximum_of_bad_samples(tmp_path, monkeypatch, max_bad_share, stops):
    monkeypatch.setattr(loop, "ReplacementLog", partial(ReplacementLog, window=16))
    members = shard_members(real_pairs(16))
    members |= {f"{pair.key}.webp": b"<html>" for pair in real_pairs(16)[:2]}
    recipe = tiny_recipe(write_tar(tmp_path / "pairs.tar", members), steps=2, health=FailureLimits(10, max_bad_share))
    refused = pytest.raises(UserError, match=r"max_bad_share 0\.1") if stops else nullcontext()
    with refused:
        pretrain(recipe, tmp_path / "run")


def test_resumed_run_counts_earlier_replacements_by_cause(tmp_path):
    pairs = list(real_pairs(16))
    pairs[11] = with_caption(pairs[11], " ")
    members = shard_members(pairs) | {f"{pairs[5].key}.webp": b"<html>"}
    kept = CheckpointRecipe(interval=2, keep_last=9)
    recipe = tiny_recipe(write_tar(tmp_path / "pairs.tar", members), steps=4, checkpoints=kept)  # two epochs
    pretrain(recipe, tmp_path / "run")
    (whole,) = read_metrics(tmp_path / "run", "train")
    point = tmp_path / "run" / "checkpoints" / "step-000000002"
    train(recipe, from_pretrained(point), tmp_path / "run", ALONE, silent, point)
    (again,) = read_metrics(tmp_path / "run", "train")
    for row in (whole, again):
        assert (row["replaced/empty caption"], row["replaced/not an image"]) == (2, 2)


def test_small_validation_split_raises_before_the_first_step(shard, tmp_path):
    steps = []
    recipe = tiny_recipe(shard, steps=11, evaluation=EvaluationRecipe(interval=100, batch_size=64))
    with pytest.raises(UserError, match="16 or less"):
        pretrain(recipe, tmp_path / "run", lambda done, metrics: steps.append(done))
    assert steps == []


def test_warm_up_that_is_longer_than_the_run_is_warned_of(shard, tmp_path):
    recipe = tiny_recipe(shard, schedule=ScheduleRecipe(steps=1, warmup_steps=2))
    with warnings_of("grr_coca.train.loop") as messages:
        pretrain(recipe, tmp_path / "run")
    (message,) = messages
    assert message.startswith("schedule: warmup_steps (2) exceeds steps (1)")


def test_truncated_captions_are_reported_once(shard, tmp_path):
    pairs = [with_caption(pair, "violin " * 30) for pair in real_pairs(8)]
    recipe = tiny_recipe(shard, steps=3, evaluation=EvaluationRecipe(interval=1, batch_size=8))
    recipe = replace(recipe, data=replace(recipe.data, val=str(write_shard(tmp_path / "val.tar", pairs))))
    with warnings_of("grr_coca.data.dataset") as messages:
        pretrain(recipe, tmp_path / "run")
    (message,) = (message for message in messages if pairs[0].key in message)
    assert message.startswith("8 of 8 captions, such as that of ")


def test_bad_validation_pair_is_excluded(shard, tmp_path):
    members = shard_members(real_pairs(9))
    key = real_pairs(9)[3].key
    members[f"{key}.webp"] = b"<html>"
    recipe = tiny_recipe(shard, steps=1)
    recipe = replace(recipe, data=replace(recipe.data, val=str(write_tar(tmp_path / "val.tar", members))))
    with warnings_of("grr_coca.train.setup") as messages:
        pretrain(recipe, tmp_path / "run")
    assert read_metrics(tmp_path / "run", "val")[0]["num_pairs"] == 8
    assert len(messages) == 1
    assert (
        f"excluding invalid validation pairs: 1 of 9; the first error is: {tmp_path / 'val.tar'}: {key}" in messages[0]
    )


def test_validation_split_of_only_bad_pairs_raises(shard, tmp_path):
    val = write_tar(tmp_path / "val.tar", {"a.webp": b"torn", "a.txt": b"a cat"})
    recipe = tiny_recipe(shard)
    recipe = replace(recipe, data=replace(recipe.data, val=str(val)))
    with pytest.raises(
        UserError, match=r"no validation pair can be read; the first error is: .*val\.tar: a.*`grr-coca data check`"
    ):
        pretrain(recipe, tmp_path / "run")


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_too_few_pairs_for_a_validation_split_raise(tmp_path, num_pairs):
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(num_pairs))
    recipe = tiny_recipe(shard)
    recipe = replace(recipe, data=replace(recipe.data, val=None))
    with pytest.raises(UserError):
        pretrain(recipe, tmp_path / "run")


def test_unwritable_run_folder_raises_with_its_name(shard, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        pretrain(tiny_recipe(shard), tmp_path / "file")
    with pytest.raises(DiskError, match=r"xxx: the run folder cannot be written to \(File name too long\)"):
        pretrain(tiny_recipe(shard), tmp_path / ("x" * 300))


# --- Validation pairs


def test_default_validation_split_is_every_twentieth_pair(tmp_path):
    shard = write_shard(tmp_path / "pairs.tar", real_pairs(40))
    recipe = tiny_recipe(shard)
    two_suffice = replace(recipe.evaluation, batch_size=2)
    pairs, val = training_sources(replace(recipe, data=replace(recipe.data, val=None), evaluation=two_suffice))
    everything = open_source(str(shard))
    assert [val[i].key for i in range(len(val))] == [everything[i].key for i in (0, 20)]
    kept = [pairs[i].key for i in range(len(pairs))]
    assert kept == [everything[i].key for i in range(40) if i not in (0, 20)]


def test_no_image_of_a_table_is_both_trained_and_validated_on(tmp_path):
    for i, pair in enumerate(real_pairs(22)):
        (tmp_path / f"{i}.webp").write_bytes(pair.image)
    rows = [f"{i}.webp,seen {way}" for i in range(22) for way in ("once", "twice", "near", "far", "now")]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows, "only one cell"]))
    recipe = tiny_recipe(tmp_path / "pairs.csv")
    pairs, val = training_sources(replace(recipe, data=replace(recipe.data, val=None)))
    assert [val[i].key for i in range(len(val))] == ["0"] * 5 + ["20"] * 5
    assert len(pairs) == 20 * 5 + 1
    assert {pairs[i].key for i in range(100)}.isdisjoint({"0", "20"})


def test_validation_split_is_never_trained_on(shard, tmp_path):
    val = write_shard(tmp_path / "val.tar", real_pairs(8, split="val"))
    recipe = tiny_recipe(shard)
    pairs, held_out = training_sources(replace(recipe, data=replace(recipe.data, val=str(val))))
    assert len(pairs) == 16
    assert len(held_out) == 8


def test_tokenizer_is_trained_only_on_training_captions(tmp_path):
    pairs = list(real_pairs(40))
    for held_out in (0, 20):
        pairs[held_out] = with_caption(pairs[held_out], "zyzzyva zyzzyva zyzzyva zyzzyva")
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs))
    checkpoint = new_checkpoint(replace(recipe, data=replace(recipe.data, val=None)), ALONE)
    assert len(checkpoint.tokenizer.encode("zyzzyva")) > 5


def test_tokenizer_is_trained_on_a_sample_of_all_data(tmp_path, monkeypatch):
    monkeypatch.setattr("grr_coca.train.setup.MAX_TOKENIZER_IMAGES", 4)
    words = [f"{'abcdefghij'[number // 10] * 3}{'klmnopqrst'[number % 10] * 3}" for number in range(40)]
    pairs = [with_caption(pair, f"{word} {word}") for pair, word in zip(real_pairs(40), words, strict=True)]
    val = str(write_shard(tmp_path / "val.tar", real_pairs(8, split="val")))
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs))
    tokenizer = new_checkpoint(replace(recipe, data=replace(recipe.data, val=val)), ALONE).tokenizer
    assert [word for word in words if len(tokenizer.encode(f"{word} {word}")) <= 4] == words[::10]


# --- Fine-tuning


def test_fine_tuning_starts_from_the_checkpoints_weights(run, tmp_path):
    recipe = finetuning(run.recipe)
    from_checkpoint = first_losses(recipe, from_pretrained(run.folder), tmp_path / "a")
    fresh = first_losses(recipe, new_checkpoint(run.recipe, ALONE), tmp_path / "b")
    assert from_checkpoint["captioning"] < fresh["captioning"] - 0.1
    assert from_checkpoint["contrastive"] != fresh["contrastive"]


def test_fine_tuning_keeps_tokenizer_model_and_preprocessing(run, tmp_path):
    start = from_pretrained(run.folder)
    other = write_shard(tmp_path / "health.tar", real_pairs(16, "health"))
    tuned = train(finetuning(tiny_recipe(other, steps=2)), start, tmp_path / "run", ALONE, silent)
    again = from_pretrained(tmp_path / "run")
    assert again.tokenizer.to_json() == start.tokenizer.to_json()
    assert (again.config, again.preprocess, again.preset) == (start.config, start.preprocess, start.preset)
    assert again.step == tuned.step == start.step + 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"preset": "baseline_coca"}, "'grr_coca', not the 'baseline_coca'"),
        ({"size": "small"}, "'small'"),
        ({"context_length": 12}, "context_length"),
        (None, "keeps the tokenizer of its checkpoint"),
    ],
)
def test_other_model_or_tokenizer_raises_with_both_names(run, change, named):
    recipe = replace(run.recipe, model=None)
    if change is not None:
        recipe = replace(run.recipe, tokenizer=None, model=replace(run.recipe.model, **change))
    with pytest.raises(UserError, match=named):
        fit_start(from_pretrained(run.folder), recipe)


def test_recipe_with_the_checkpoints_model_is_accepted(run):
    fit_start(from_pretrained(run.folder), replace(run.recipe, tokenizer=None))
    fit_start(from_pretrained(run.folder), finetuning(run.recipe))


@pytest.mark.parametrize("missing", ["model", "tokenizer"])
def test_pretraining_without_model_or_tokenizer_is_an_error(run, missing):
    with pytest.raises(UserError, match=f"has no key '{missing}', which pretraining needs"):
        new_checkpoint(replace(run.recipe, **{missing: None}), ALONE)


def test_frozen_part_is_unchanged_and_others_learn(run, tmp_path):
    start = from_pretrained(run.folder)
    before = weights(start)
    optimizer = OptimizerRecipe("muon", weight_decay=0.5)
    recipe = finetuning(run.recipe, freeze=("image_encoder",), optimizer=optimizer, schedule=ScheduleRecipe(2, 0))
    after = weights(train(recipe, start, tmp_path / "run", ALONE, silent))
    frozen = {key for key in before if key.split(".")[0] in FROZEN_MODULES["image_encoder"]}
    assert frozen
    assert set(differing(before, after)) == before.keys() - frozen


def test_truncated_log_records_its_size(tmp_path):
    """Else the next life would keep lines that this one writes again."""
    lines = [f'{{"step": {step}, "split": "train"}}\n' for step in (10, 20)]
    (tmp_path / LOG_FILE).write_text("".join(lines))
    with MetricLog(tmp_path, Progress(step=10, log_bytes=len(lines[0]))) as log:
        assert log.make_durable() == len(lines[0])
        log.write(20, "train", {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path, "train")] == [10, 20]


def test_unwritable_log_raises_with_its_folder(tmp_path):
    with pytest.raises(DiskError, match=rf"{tmp_path}/gone: the log cannot be written \(No such file or directory\)"):
        MetricLog(tmp_path / "gone", Progress())


def test_only_the_first_rank_writes_the_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captions = CaptionedSplit(("a.png",), ("a cat",), (("a dog",),))
    with MetricLog(None, Progress()) as log:
        log.write(1, "train", {"loss": 1.0})
        log.show(1, "train", {"loss": 1.0})
        log.event(1, "spike", keys=["a"])
        log.captions(1, captions)
    assert list(tmp_path.iterdir()) == []


def test_ranks_share_the_check_of_validation_pairs(monkeypatch):
    """One rank alone would take hours for millions of pairs, and the others give up waiting after half an hour."""
    pairs = list(real_pairs(7))
    pairs[1], pairs[5] = replace(pairs[1], image=b"no image"), replace(pairs[5], image=b"no image")
    val, parts = PairsInMemory(pairs), []
    monkeypatch.setattr(Ranks, "gather_objects", lambda _, item: parts.append(item) or list(parts))
    for rank in range(3):
        sound = readable_validation(val, Ranks(rank, 3, CPU))
    assert [found.tolist() for found, _ in parts] == [[0], [2, 3], [4, 6]]
    assert [sound.name(index) for index in range(len(sound))] == [val.name(index) for index in (0, 2, 3, 4, 6)]


def test_gpu_use_is_logged_only_with_a_gpu(monkeypatch):
    assert device_use(CPU) == {}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    monkeypatch.setattr("grr_coca.train.logs.find_spec", lambda name: object())
    assert device_use(torch.device("cuda", 0)) == {"memory_gib": 1.5, "utilization": 0.87}
    monkeypatch.setattr("grr_coca.train.logs.find_spec", lambda name: None)
    assert device_use(torch.device("cuda", 0)) == {"memory_gib": 1.5}
