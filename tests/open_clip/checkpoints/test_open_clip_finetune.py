"""An imported checkpoint is fine-tuned by the recipe that comes with the code, on COCO's layout, and goes back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip_files import random_checkpoint, write_hub_folder
from PIL import Image
from support import ALONE, differing, encode_image, silent, weights

from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.forecast import forecast
from grr_coca.train.loop import train
from grr_coca.train.recipe import load_recipe
from grr_coca.train.setup import fit_start
from grr_coca_open_clip.checkpoints.read import read_open_clip
from grr_coca_open_clip.checkpoints.write import write_open_clip

RECIPE = Path(__file__).parents[3] / "recipes" / "open_clip_finetune.yaml"
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dataset_coco.json` beside the folders of images, each with two captions."""
    folder, images = tmp_path_factory.mktemp("coco"), []
    for number in range(24):
        split = ("train", "restval", "val")[number % 3]
        part, colour = "train2014" if split == "train" else "val2014", COLOURS[number % len(COLOURS)]
        name = f"COCO_{part}_{number:012}.jpg"
        (folder / part).mkdir(exist_ok=True)
        (folder / part / name).write_bytes(encode_image(Image.new("RGB", (80, 60), colour), "jpeg"))
        texts = [{"raw": f"a {colour} image"}, {"raw": f"everything is {colour} here, {number} times"}]
        images.append({"filepath": part, "filename": name, "split": split, "cocoid": number, "sentences": texts})
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    return folder


@pytest.fixture(scope="module")
def recipe(coco: Path):
    """The recipe as it is, with these pairs, few of them at a time, and few steps."""
    recipe, path = load_recipe(RECIPE), str(coco / "dataset_coco.json")
    data = replace(recipe.data, train=f"{path}#train+restval", val=f"{path}#val", test={})
    return replace(
        recipe,
        data=replace(data, batch_size=4, micro_batch_size=2, num_workers=0),
        schedule=replace(recipe.schedule, steps=3, warmup_steps=1),
        evaluation=replace(recipe.evaluation, interval=3, batch_size=4, num_captions=2),
        precision="fp32",
    )


@pytest.mark.ci
def test_fine_tuned_model_stays_exportable_to_open_clip(recipe, tmp_path):
    name = "mscoco_finetuned_small"
    start = read_open_clip(write_hub_folder(random_checkpoint(), tmp_path / name))
    fit_start(start, recipe)
    before = weights(start)
    output = forecast(recipe, read_open_clip(tmp_path / name), ALONE)
    assert "peak memory" in output
    assert "open_clip_coca" in output
    assert "16 pairs" in output
    train(recipe, start, tmp_path / "run", ALONE, silent)
    tuned = from_pretrained(tmp_path / "run")
    assert tuned.caution, "it was one for captions alone, and still may be"
    assert tuned.tokenizer.cleaning == "ftfy"
    assert tuned.preprocess == start.preprocess
    changed = differing(weights(tuned), before)
    assert {"captioning_pooler.queries", "text_decoder.cls_embedding", "image_encoder.patch_embed.bias"} <= set(changed)
    write_open_clip(tuned, tmp_path / "back")
    again = read_open_clip(tmp_path / "back")
    generator = torch.Generator().manual_seed(0)
    pixels, ids = torch.randn(2, 3, 64, 64, generator=generator), torch.tensor([[49406, 320, 1125, 49407, 0]] * 2)
    with torch.inference_mode():
        ours, theirs = (each.model(pixels, ids, torch.tensor([5, 5])) for each in (tuned, again))
    for key in ("image_embedding", "text_embedding", "states"):
        torch.testing.assert_close(getattr(theirs, key), getattr(ours, key), rtol=0, atol=1e-5)
