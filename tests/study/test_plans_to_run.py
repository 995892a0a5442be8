"""The plans that have not run: also those for data that does not come with the code, on tiny trees in its formats."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from support import CPU, encode_image, real_pairs, write_tar

from grr_coca.cli import main
from grr_coca.model.anatomy import TRAINING_PASSES, flops_of_pairs, num_parameters
from grr_coca.train.recipe import load_recipe
from grr_coca_study.plan import Plan, points_of, read_plan, stage_names
from grr_coca_study.running import speed
from grr_coca_study.running.agenda import RemainingWork
from grr_coca_study.running.stage import run_stage
from grr_coca_study.stages import check_recipes, require_precisions

STUDIES = Path(__file__).parents[2] / "studies"
GPU = STUDIES / "gpu"
PLANS = ("cc12m", "cc3m_one_gpu")
TINY = {
    "data": {"batch_size": 4, "micro_batch_size": None, "num_workers": 0},
    "schedule": {"steps": 2, "warmup_steps": 1},
    "evaluation": {"interval": 2, "batch_size": 4},
    "model": {"size": "tiny", "image_size": 16, "patch_size": 8},
}


def jpeg(index: int) -> bytes:
    picture = Image.open(io.BytesIO(real_pairs(8)[index].image)).convert("RGB")
    return encode_image(picture, "jpeg")


def lay_out_shards(folder: Path) -> None:
    """As img2dataset writes them: an image, its caption and what is known of it, under one number."""
    members = {}
    for index in range(8):
        key = f"{index:09d}"
        members[f"{key}.jpg"] = jpeg(index)
        members[f"{key}.txt"] = real_pairs(8)[index].caption.encode()
        members[f"{key}.json"] = json.dumps({"caption": real_pairs(8)[index].caption, "status": "success"}).encode()
    write_tar(folder / "00000.tar", members)


def lay_out_karpathy(folder: Path, name: str, images: str) -> None:
    """Karpathy's file of COCO or Flickr30K: five captions an image, splits inside."""
    folder.mkdir(parents=True)
    entries = []
    more = ["restval"] * 8 if name == "dataset_coco.json" else []
    for number, split in enumerate(["train"] * 8 + more + ["val"] * 8 + ["test"] * 8):
        file = f"{number}.jpg"
        entry = {"filename": file, "split": split, "imgid": number, "sentids": []}
        entry["sentences"] = [{"raw": f"{real_pairs(8)[number % 8].caption} {i}"} for i in range(5)]
        if name == "dataset_coco.json":
            entry["filepath"] = images
        entries.append(entry)
        (folder / images).mkdir(exist_ok=True)
        (folder / images / file).write_bytes(jpeg(number % 8))
    (folder / name).write_text(json.dumps({"images": entries, "dataset": name}))


def lay_out_roco(folder: Path) -> None:
    """ROCO v2: a table of identities and captions for each split, and a folder of images of the same name."""
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True)
        with (folder / f"{split}_captions.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["ID", "Caption"])
            for index in range(8):
                identity = f"ROCOv2_2023_{split}_{index:06d}"
                table.writerow([identity, f"radiograph of {real_pairs(8)[index].caption}"])
                (folder / split / f"{identity}.jpg").write_bytes(jpeg(index))


@pytest.fixture
def tree(tmp_path):
    """The studies with recipes of a few steps of a tiny model, beside the data that they expect."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in PLANS:
        shutil.copy(STUDIES / f"{name}.yaml", studies)
    (studies / "recipes").mkdir()
    for path in (STUDIES / "recipes").iterdir():
        recipe = yaml.safe_load(path.read_text())
        for part in TINY.keys() & recipe.keys():
            recipe[part] |= TINY[part]
        if "tokenizer" in recipe:
            recipe["tokenizer"] = {"kind": "bpe", "vocab_size": 300}
        (studies / "recipes" / path.name).write_text(yaml.safe_dump(recipe))
    for corpus in ("cc12m", "cc3m"):
        for split in ("train", "val", "test"):
            lay_out_shards(tmp_path / "data" / corpus / split)
    lay_out_karpathy(tmp_path / "data" / "coco", "dataset_coco.json", "val2014")
    lay_out_karpathy(tmp_path / "data" / "flickr30k", "dataset_flickr30k.json", "flickr30k-images")
    lay_out_roco(tmp_path / "data" / "roco")
    return studies


@pytest.mark.parametrize(
    "name", [pytest.param("cc12m", marks=pytest.mark.ci), pytest.param("cc3m_one_gpu", marks=pytest.mark.slow)]
)
def test_every_stage_of_a_large_plan_runs(tree, name):
    path = tree / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    del content["tuning"]
    content["arms"] = [arm["name"] for arm in content["arms"]]
    path.write_text(yaml.safe_dump(content | {"seeds": [0], "precision": "fp32", "muon_precision": "fp32"}))
    plan = read_plan(path, Plan)
    agenda = RemainingWork(plan, lambda arm, seed, stage, digest: tree / "runs" / stage, arms=["grr_coca"])
    rows = []
    while tasks := agenda.open_tasks():
        rows.append(run_stage(tasks[0], CPU, lambda _: None))
        agenda.add(rows[-1])
    assert [row.stage for row in rows] == list(stage_names(plan))
    pairs = {row.stage: row.metrics["test"]["num_pairs"] for row in rows}
    assert list(pairs.values()) == [8, 40, 40, 8], "each caption of an image is a pair"


@pytest.mark.ci
@pytest.mark.parametrize("name", PLANS)
def test_large_plan_passes_a_dry_run(tree, name, capsys, monkeypatch):
    for key, value in {"SECONDS": 0.1, "WARM_UP": 1, "MIN_STEPS": 1}.items():
        monkeypatch.setattr(speed, key, value)
    path = tree / f"{name}.yaml"
    path.write_text(path.read_text().replace("precision: bf16", "precision: fp32"))
    for recipe in (tree / "recipes").iterdir():
        recipe.write_text(recipe.read_text().replace("precision: bf16", "precision: fp32"))
    assert main(["study", "run", str(path), "--dry-run"]) == 0
    output = capsys.readouterr().out
    for arm in ("baseline_coca", "grr_coca"):
        (line,) = (line for line in output.splitlines() if line.startswith(f"{arm} "))
        assert line.split()[1:3] == ["9", "32"], "3 rates, and 2 of 3 fine-tunings; 8 seeds of 4 stages"
    assert "power: with 8 seeds and 6 primary endpoints" in output


@pytest.mark.parametrize("name", PLANS)
def test_large_plan_is_complete(tree, name, capsys):
    command = ["study", "run", str(tree / f"{name}.yaml"), "--only", "coca"]
    assert main(command) == 2
    assert "the plan has no arm 'coca'" in capsys.readouterr().err, "all that comes before is right"
    assert not (tree / name).exists()
    assert read_plan(STUDIES / f"{name}.yaml", Plan).precision == "bf16"


def test_plan_for_a_gpu_is_complete():
    plan = read_plan(GPU / "plan.yaml", Plan)
    check_recipes(plan, GPU / "plan.yaml")
    require_precisions(plan, GPU / "plan.yaml")


@pytest.mark.ci
def test_header_matches_the_counted_runs():
    recipe, header = load_recipe(GPU / "pictograms.yaml"), (GPU / "plan.yaml").read_text()
    config = recipe.model.config(recipe.tokenizer.vocab_size)
    assert config.image_encoder.num_patches == 256
    flops = flops_of_pairs(config, torch.full((16,), 10), torch.arange(128)) / 16
    (gflops,) = re.findall(r"\((\d\.\d) GFLOP a pair", header)
    assert float(gflops) == pytest.approx(flops / 1e9, abs=0.05)
    assert f"models of {num_parameters(config) / 1e6:.0f} million" in header
    run = TRAINING_PASSES * recipe.data.batch_size * recipe.schedule.steps * float(gflops) * 1e9
    assert f" {run / 1e15:.0f} PFLOP a run" in header
    plan = read_plan(GPU / "plan.yaml", Plan)
    num_points = len(points_of(plan, plan.arms[0], "pictograms"))
    count = len(plan.arms) * (num_points * len(plan.tuning.seeds) + len(plan.seeds))
    assert f"with {count} rows" in header
    for share, minutes in ((0.25, 14), (0.13, 22)):
        assert f"{share:.0%}".replace("%", " %") in header
        assert f"{minutes} minutes" in header
        assert count * (run / (share * 989e12) + 35) / 60 == pytest.approx(minutes, abs=0.5)
