"""Zero-shot classification: by hand, and what its files may hold."""

import copy
import os
import shutil
from dataclasses import replace

import pytest
import torch
from support import ALONE, real_pairs, tiny_recipe, with_caption, write_shard

from grr_coca.common.errors import UserError
from grr_coca.evaluate.labelled import open_labelled
from grr_coca.evaluate.zeroshot import classifier_of, classify_labelled, embed_labelled, embed_texts
from grr_coca.infer.class_names import TEMPLATES, read_class_names, read_templates
from grr_coca.infer.classifier import ZeroShotClassifier
from grr_coca.train.setup import new_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return new_checkpoint(
        tiny_recipe(write_shard(tmp_path_factory.mktemp("zero") / "pairs.tar", real_pairs(20))), ALONE
    )


def classify(images, classes, targets):
    classifier = ZeroShotClassifier(tuple(map(str, range(len(classes)))), classes.numpy())
    return classify_labelled(classifier, images, targets)


# --- Accuracies


def test_accuracies_by_hand():
    classes = torch.eye(6)
    images = torch.stack([classes[0], classes[0], classes[1] * 0.9 + classes[2], torch.linspace(1, 0, 6)])
    found = classify(images, classes, [0, 0, 1, 5]).measures()
    assert found["top-1"].value() == 0.5  # images 0 and 1
    assert found["top-5"].value() == 0.75  # image 2 is second, image 3 last of six
    assert found["mean_per_class"].value() == pytest.approx((1.0 + 0.0 + 0.0) / 3)


def test_tie_counts_against_the_right_class():
    found = classify(torch.ones(3, 4), torch.ones(5, 4), [0, 1, 2]).measures()
    assert found["top-1"].value() == 0.0
    assert "top-5" not in found, "of five classes, five are no choice"


def test_class_embedding_is_a_normalized_mean(checkpoint):
    found = classifier_of(checkpoint, ["cat", "dog"], ["{}", "a picture of a {}."]).embedding
    by_hand = [embed_texts(checkpoint, [name, f"a picture of a {name}."]).mean(dim=0) for name in ("cat", "dog")]
    expected = torch.stack([mean / mean.norm() for mean in by_hand])
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-6)


def test_many_texts_are_embedded_as_few(checkpoint, monkeypatch):
    texts = [pair.caption for pair in real_pairs(9)]
    together = embed_texts(checkpoint, texts)
    monkeypatch.setattr("grr_coca.evaluate.zeroshot.TEXTS_AT_ONCE", 4)
    assert torch.allclose(embed_texts(checkpoint, texts), together, atol=1e-6)


# --- Labels and templates


def test_labels_are_nonempty_lines(tmp_path):
    (tmp_path / "labels.txt").write_text("a cat\n\n  red   heart \n")
    assert read_class_names(tmp_path / "labels.txt") == ("a cat", "red heart")


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_class_names, b"cat\ndog\nCat\n", r"t\.txt: labels must differ .*: 'cat' \(labels 1 and 3\)"),
        (read_class_names, b"", "no text"),
        (read_class_names, b"cat\n", "at least two labels"),
        (read_class_names, None, "no such file"),
        (read_templates, b"a {}\n\na picture\n", r"t\.txt, line 3: template 'a picture' has no \{\}"),
        (read_templates, b"\xff\xfe", "not UTF-8"),
        (read_templates, b"\n", "has no text"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, read, content, message):
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "t.txt")


def test_our_own_templates_are_sound():
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert all(template.count("{}") == 1 for template in TEMPLATES)


# --- Images with classes


def lay_out(root, names=("cat", "red_heart")):
    for number, pair in enumerate(real_pairs(4)):
        folder = root / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.webp").write_bytes(pair.image)
    return root


def test_folder_per_class(tmp_path):
    images = open_labelled(str(lay_out(tmp_path)))
    assert images.class_names == ("cat", "red heart")
    assert images.targets == (0, 0, 1, 1)
    assert images.read(2) == (real_pairs(4)[1].image, str(tmp_path / "red_heart" / "1.webp"))


def test_ignores_other_files_next_to_class_folders(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "README.txt").write_text("what this is")
    (tmp_path / "cat" / "classes.txt").write_text("cat")
    (tmp_path / "cat" / "._0.webp").write_bytes(b"of the Finder")
    (tmp_path / "._cat.jpg").write_bytes(b"of the Finder")
    shutil.copytree(tmp_path / "cat", tmp_path / ".ipynb_checkpoints")
    shutil.copytree(tmp_path / "cat", tmp_path / "notes" / ".ipynb_checkpoints")
    (tmp_path / ".ipynb_checkpoints" / "0.txt").write_text("a caption")
    (tmp_path / "cat" / ".cache").mkdir()
    (tmp_path / "cat" / ".cache" / "old.tar").touch()
    assert open_labelled(str(tmp_path)).targets == (0, 0, 1, 1)


def test_class_that_cannot_be_listed_is_named(tmp_path, lock):
    lock(lay_out(tmp_path, ("cat", "dog")) / "dog")
    with pytest.raises(UserError, match=r"dog: cannot be listed \(Permission denied\)"):
        open_labelled(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "red_heart", "dog/small"), "dog: its images are in subfolders"),
        (("cat",), "at least two labels"),
        (("cat", os.fsdecode(b"caf\xe9")), "the label 'caf.*' is not UTF-8 text; rename it"),
        (("cat", os.fsdecode(b"half \xed\xa0\xbd")), "the label 'half .*' is not UTF-8 text; rename it"),
    ],
)
def test_folders_that_are_not_classes_are_named(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        open_labelled(str(lay_out(tmp_path, names)))


def test_images_with_their_labels_in_texts_beside_them_are_pairs(tmp_path):
    for file in lay_out(tmp_path).rglob("*.webp"):
        file.with_suffix(".txt").write_text(f"label {int(file.stem) % 4}")
    assert open_labelled(str(tmp_path)).class_names == ("label 0", "label 1", "label 2", "label 3")


def test_rocos_folder_holds_pairs(tmp_path):
    lay_out(tmp_path, ("images",))
    (tmp_path / "captions.txt").write_text("0.webp\ta cat\n1.webp\ta dog\n")
    assert open_labelled(str(tmp_path)).class_names == ("a cat", "a dog")


def test_shards_in_folders_are_pairs_and_no_classes(tmp_path):
    write_shard(tmp_path / "train" / "0.tar", real_pairs(4))
    write_shard(tmp_path / "val" / "0.tar", real_pairs(2))
    (tmp_path / "train" / "0.webp").write_bytes(real_pairs(1)[0].image)
    (tmp_path / "val" / "0.webp").write_bytes(real_pairs(1)[0].image)
    with pytest.raises(UserError, match=r"train/0\.webp: the image has no caption; expected it in 0\.txt"):
        open_labelled(str(tmp_path))


def test_keeps_class_order_and_classes_without_images(tmp_path):
    images = open_labelled(str(lay_out(tmp_path)), ("red heart", "dog", "cat"))
    assert images.targets == (2, 2, 0, 0)


def test_unknown_label_names_the_nearest_class(tmp_path):
    with pytest.raises(
        UserError, match=r"unknown label 'red heart' \(2 classes are known\); did you mean 'red hearts'"
    ):
        open_labelled(str(lay_out(tmp_path)), ("cat", "red hearts"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("all.csv", "path,label\ncat/0.webp,cat\nred_heart/1.webp,heart\n"),
        ("all.csv", "label,path\ncat,cat/0.webp\nheart,red_heart/1.webp\n"),
        ("all.csv", "\ufeffpath,label\ncat/0,cat\nred_heart/1,heart\n"),
        ("all.CSV", "id,Label,set,file name\n7,cat,test,cat/0.webp\n8,heart,test,red_heart/1.webp\n"),
    ],
    ids=["paths first", "labels first", "a mark, and no suffix", "more columns"],
)
def test_table_of_paths_and_labels(tmp_path, name, content):
    for file in lay_out(tmp_path).rglob("*.webp"):
        shutil.copyfile(file, file.with_suffix(""))
    (tmp_path / name).write_text(content)
    images = open_labelled(str(tmp_path / name))
    assert (images.class_names, images.targets) == (("cat", "heart"), (0, 1))
    assert [images.read(i)[0] for i in range(2)] == [pair.image for pair in real_pairs(2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,file,species\n7,cat/0.webp,cat\n", "the first row must name a column of images and one of labels"),
        ("", "the first row must name"),
        (
            "path,label\na.png,cat, black\n",
            "row 2: expected .* columns, found 3; put a cell that contains a comma in quotes$",
        ),
        ("path,label\n", r"all\.csv: no labelled image found"),
        ("path,label\ncat/0.webp\n", "row 2: expected 2 columns, found 1"),
        ("\npath,label\n\ncat/0.webp\n", "row 4: expected 2 columns, found 1"),
        ("path,label\na.png,cat\nb.png,dog\n", r"a\.png: no such file"),
        ("path,label\n/dev/zero,cat\n/dev/null,dog\n", "^/dev/zero: not a regular file; correct the path"),
        (None, r"all\.csv: no such file"),
        ("cat/0.webp,K\xe4se\n".encode("latin-1"), r"all\.csv: not a readable CSV file \('utf-8' codec"),
    ],
)
def test_names_unreadable_tables_and_missing_images(tmp_path, content, message):
    if content is not None:
        (tmp_path / "all.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        open_labelled(str(tmp_path / "all.csv"), ("cat", "dog")).read(0)


def test_spaces_around_the_label_of_a_folder_are_removed(tmp_path):
    assert open_labelled(str(lay_out(tmp_path, ("cat", "red__heart_")))).class_names == ("cat", "red heart")


def test_captions_of_shards_are_labels(tmp_path):
    pairs = [with_caption(pair, ("cat", "dog")[i % 2]) for i, pair in enumerate(real_pairs(5))]
    images = open_labelled(str(write_shard(tmp_path / "a.tar", pairs)))
    assert (images.class_names, images.targets) == (("cat", "dog"), (0, 1, 0, 1, 0))


def test_batches_hold_all_images(tmp_path, checkpoint):
    images = open_labelled(str(lay_out(tmp_path)))
    assert [len(batch) for batch in images.batches(checkpoint, 3)] == [3, 1]


def test_model_in_bf16_classifies(tmp_path, checkpoint):
    images = open_labelled(str(lay_out(tmp_path)))
    coarse = replace(checkpoint, model=copy.deepcopy(checkpoint.model).to(torch.bfloat16))
    expected, found = (embed_labelled(each, images, 3) for each in (checkpoint, coarse))
    assert torch.allclose(found, expected, atol=0.02)
