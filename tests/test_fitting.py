"""What the scripts share that fit numbers to a model that ships."""

import json
import shutil
from dataclasses import replace

import pytest

import fitting
from grr_coca.common.dict_to_dataclass import to_dict
from grr_coca.common.errors import UserError
from grr_coca.common.files import edit_folder_atomic, verify_folder
from grr_coca.model.checkpoint_files import Figure, bundled_folder, bundled_models


def test_rejects_an_unknown_model_with_a_suggestion():
    assert fitting.folder_of("icons") == bundled_folder("icons")
    for find in (fitting.folder_of, fitting.card_text):
        with pytest.raises(UserError, match=r"did you mean 'icons'\?"):
            find("icon")


def test_figures_of_a_split_are_added_to_existing_ones(tmp_path):
    folder = tmp_path / "icons"
    shutil.copytree(bundled_folder("icons"), folder)
    card = replace(bundled_models()["icons"], figures={"val": {"a": Figure(1, 1, 1), "b": Figure(2, 2, 2)}})
    with edit_folder_atomic(folder) as partial:
        (partial / "card.json").write_text(json.dumps(to_dict(card)))
    found = {"val": {"b": Figure(3, 3, 3)}, "test": {"c": Figure(4, 4, 4)}}
    fitting.write_fitted(folder, "fitted.json", Figure(0, 1, 2), found, ["## Cost", "", "nothing"], "## Training")
    assert fitting.read_card(folder).figures == {
        "val": {"a": Figure(1, 1, 1), "b": Figure(3, 3, 3)},
        "test": {"c": Figure(4, 4, 4)},
    }
    assert "## Cost\n\nnothing\n\n## Uses and limits" in (folder / "card.md").read_text()
    assert json.loads((folder / "fitted.json").read_text()) == {"value": 0, "low": 1, "high": 2}
    verify_folder(folder)
