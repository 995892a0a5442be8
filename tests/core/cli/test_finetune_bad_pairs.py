"""Fine-tuning on pairs that teach little or nothing: a result, or one line that tells what to do."""

from dataclasses import replace

import pytest
from support import BATCH_SIZE, finetuning, real_pairs, with_caption, write_shard

from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.recipe import DataRecipe, EvaluationRecipe, ScheduleRecipe, save_recipe

PAIRS = real_pairs(40)


@pytest.fixture
def finetune(grr_coca, run, tmp_path):
    """Fine-tune for two steps on some pairs, of which every 20th is for validation."""

    def done(pairs, batch_size=2):
        recipe = replace(
            finetuning(run.recipe),
            data=DataRecipe(train=str(write_shard(tmp_path / "mine.tar", pairs)), batch_size=BATCH_SIZE),
            schedule=ScheduleRecipe(steps=2, warmup_steps=0),
            evaluation=EvaluationRecipe(interval=2, batch_size=batch_size),
        )
        save_recipe(recipe, tmp_path / "mine.yaml")
        options = ("--checkpoint", run.folder, "--out", tmp_path / "run", "--no-adapt")
        return grr_coca("finetune", tmp_path / "mine.yaml", *options), tmp_path / "run"

    return done


def test_class_names_are_accepted_as_captions(finetune):
    outcome, out = finetune([with_caption(pair, ("cat", "dog", "sun")[i % 3]) for i, pair in enumerate(PAIRS)])
    assert outcome.code == 0, outcome.err
    assert from_pretrained(out).step == 5


def test_few_pairs_hold_out_enough_to_validate_on(finetune):
    outcome, out = finetune([replace(PAIRS[0], image=b"torn"), *PAIRS[1:]], batch_size=5)
    assert outcome.code == 0, outcome.err
    assert from_pretrained(out).step == 5


def test_one_caption_per_image_trains_with_a_warning(finetune, caplog):
    outcome, _ = finetune([with_caption(pair, "one") for pair in PAIRS])
    assert outcome.code == 0, outcome.err
    assert "are equal ('one'), so there is nothing to learn; use captions that differ" in caplog.text


def test_some_broken_images_are_replaced_and_counted(finetune, caplog):
    pairs = [replace(pair, image=b"torn") if i in (3, 7) else pair for i, pair in enumerate(PAIRS)]
    outcome, _ = finetune(pairs)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (PAIRS[:1], "no training pair remains; add pairs, or set data: val"),
        (PAIRS[:2], "needs at least that many pairs, got 1; add pairs"),
        ([replace(pair, image=b"torn") for pair in PAIRS], "no validation pair can be read; the first error is: "),
        (
            [PAIRS[0], *(replace(pair, image=b"torn") for pair in PAIRS[1:20]), PAIRS[20]],
            "run `grr-coca data check` to list all errors",
        ),
    ],
    ids=["one image", "two pairs", "broken", "only validation can be read"],
)
def test_unusable_pairs_get_one_line(finetune, pairs, message):
    outcome, _ = finetune(pairs)
    assert outcome.code == 2
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
