"""Pages of studies: each finished study names the code that wrote it and shows at most two images; plans are valid."""

import re
from pathlib import Path

import pytest
import yaml

from grr_coca_study.plan import Plan, read_plan

STUDIES = Path(__file__).parents[2] / "studies"
PAGES_ELSEWHERE = {"adamw_long/2400_parts_one_kernel": "adamw_long/2400_parts"}
FINISHED = sorted(
    path.parent
    for path in STUDIES.rglob("runs.jsonl")
    if path.parent.relative_to(STUDIES).as_posix() not in PAGES_ELSEWHERE
)


@pytest.mark.parametrize(("study", "page"), PAGES_ELSEWHERE.items())
def test_page_of_another_study_has_the_results(study, page):
    assert (STUDIES / study / "runs.jsonl").exists()
    assert f"(../{Path(study).name}.yaml)" in (STUDIES / page / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", FINISHED, ids=lambda folder: folder.relative_to(STUDIES).as_posix())
def test_finished_study_names_its_code_and_shows_its_images(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    name = folder.relative_to(STUDIES).as_posix()
    assert re.search(rf"`git show [0-9a-f]{{8}}:studies/{name}/README\.md`", text)
    shown = re.findall(r"!\[[^\]]+\]\((figures/[\w.-]+)\)", text)
    assert {folder / path for path in shown} == set((folder / "figures").glob("*"))
    assert len(shown) <= 2


def test_plans_of_the_page_on_studies_are_valid(tmp_path):
    page = (STUDIES.parent / "docs" / "run-a-study.md").read_text(encoding="utf-8")
    plan, grids = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    for keys in (plan, {**plan, **grids}):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(keys), encoding="utf-8")
        assert read_plan(path, Plan).tuning is not None
