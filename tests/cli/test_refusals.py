"""What the verbs refuse: one line that names the way out, exit code 2, and nothing is written."""

import json
import os
import shlex

import pytest

from grr_coca.train.recipe import save_recipe
from support import finetuning, real_pairs, snapshot, tiny_recipe, write_shard, write_tar

REFUSED = [
    ("caption -c $RUN", "no images; give image files, folders"),
    ("caption images -c nowhere", "nowhere: no such folder"),
    ("caption images -c $RUN --num-beams 3 --temperature 1", "num_beams 3 conflicts with temperature"),
    ("caption images -c $RUN --top-k 3", "top_k without temperature"),
    ("caption images -c $RUN --max-length 1000", "max_length 1000 is more than"),
    (f"caption images -c $RUN --prompt '{'word ' * 50}'", "the prompt has"),
    ("caption images -c $RUN --num-captions 2", "num_captions 2 is more than num_beams 1"),
    ("caption images -c $RUN --batch-size 0", "--batch-size 0: give 1 or more"),
    ("caption images -c $RUN --overwrite", "--overwrite replaces captions beside images"),
    ("caption images -c $RUN --json --sidecar txt", "--sidecar and --json name different outputs"),
    ("caption images -c $RUN --json --out a.csv", "--out and --json name different outputs"),
    ("caption images -c $RUN --out a.txt", "a.txt: '.txt' is not the suffix"),
    ("caption images -c $RUN --out a.jsnol", "did you mean '.jsonl'?"),
    ("caption images -c $RUN --out folder.csv", "folder.csv: is a folder; give the name of a file"),
    ("caption images -c $RUN --out /dev/full/out.jsonl", "/dev/full"),
    ("caption shard.tar -c $RUN --sidecar xmp", "use --out FILE"),
    ("caption images -c icons --tags 21", "--tags 21 is out of range; give 1 to 20"),
    ("caption images -c icons --tags 3 --out a.csv", "--tags are printed, so not with --out"),
    ("caption images -c icons --tags 3 --temperature 1", "not with temperature"),
    ("classify images -c $RUN --labels 'cat,dog, CAT'", "(case and spaces do not count): 'cat' (1 and 3)"),
    ("classify images -c $RUN --labels cat", "--labels 'cat': neither a file nor two or more labels"),
    ("classify images -c $RUN --labels lables.txt", "neither a file nor two or more labels"),
    ("classify images -c $RUN --labels ,", "neither a file nor two or more labels"),
    (f"classify images -c $RUN --labels {'cat' * 100}", "catcatcat"),
    ("classify images -c $RUN --labels twice.txt", "twice.txt … : 'cat' (1 and 3), 'red heart' (4 and 5)\n"),
    ("classify images -c $RUN --labels cat,dog --top 0", "give 1 or more"),
    ("classify images -c $RUN --labels cat,dog --templates 'a photo'", "has no {}"),
    ("classify -c $RUN --labels cat,dog --templates 'a {}' 0.webp", "--templates takes all that follows it"),
    ("classify images -c $RUN --labels cat,dog --batch-size 0", "--batch-size 0: give 1 or more"),
    (
        "classify images -c $RUN --labels cat,dog --min-probability 0.9",
        "--min-probability is about the keywords in XMP files; give --sidecar xmp too",
    ),
    *(
        (f"classify images -c $RUN --labels cat,dog --sidecar xmp --min-probability {number}", "--min-probability")
        for number in ("-1", "2", "nan")
    ),
    (
        "classify shard.tar -c $RUN --labels cat,dog --sidecar xmp",
        "part of a shard or table, so no file can be written beside it; use --json",
    ),
    ("embed -c $RUN --out v.npy", "give either images or --texts FILE to embed"),
    ("embed -c $RUN cat.png --texts t.txt --out v.npy", "not both"),
    ("embed -c $RUN cat.png --out v.pt", "v.pt: '.pt' is not the suffix"),
    ("embed -c $RUN cat.png --out v.safetensor", "did you mean '.safetensors'?"),
    ("embed -c $RUN cat.png --out folder.npy", "is a folder"),
    ("embed -c $RUN --texts blank.txt --out v.npy", "blank.txt: holds no text"),
    ("embed -c $RUN --texts latin.txt --out v.npy", "latin.txt: not UTF-8"),
    ("embed -c $RUN --texts nowhere.txt --out v.npy", "nowhere.txt: no such file"),
    ("embed -c $RUN --texts t.txt --out v.npy --exclude '*.gif'", "--exclude is about images; leave it out"),
    ("embed -c $RUN --texts t.txt --out v.npy --on ray", "--on ray is about images; leave it out"),
    ("embed -c $RUN --texts t.txt --out v.npy --batch-size 0", "--batch-size 0: give 1 or more"),
    ("explain images/0.webp -c $RUN --out maps.jpg", "maps.jpg: '.jpg' is not the suffix"),
    ("explain images/0.webp -c $RUN --text ' '", "empty"),
    ("explain images --out a.png", "images: is a folder; give a file"),
    ("explain cat.png -c $RUN", "cat.png: no such file"),
    ("explain file -c $RUN", "file: not an image"),
    ("evaluate $RUN", "give --data PATH"),
    ("evaluate $RUN --data split.tar", "16 or less"),
    ("evaluate $RUN --data split.tar --batch-size 0", "batch"),
    ("evaluate $RUN --data split.tar --batch-size -1", "batch"),
    ("evaluate $RUN --data split.tar --task retrieval --folds 17", "17 folds of 16 images"),
    ("evaluate $RUN --data split.tar --task retrieval --folds 0", "--folds 0"),
    ("evaluate $RUN --data split.tar shard.tar --task captioning --out c.jsonl", "one split"),
    ("evaluate $RUN --data split.tar --task captioning --out images", "images: is a folder"),
    ("evaluate $RUN --data split.tar --task zeroshot --labels twice.txt", "(case and spaces do not count): 'cat' (1"),
    ("evaluate $RUN --data split.tar --task probe", "give --train PATH"),
    *(
        (f"evaluate $RUN --data split.tar {option} 2", f"{option} belongs to --task {owner}, not to --task loss")
        for option, owner in {
            "--folds": "retrieval",
            "--out": "captioning",
            "--labels": "zeroshot",
            "--train": "probe",
        }.items()
    ),
    ("compare $RUN $RUN", "give --data PATH"),
    ("info grr_coca --batch 0", "--batch 0 is out of range; give 1 or more"),
    ("info grr_coca --text-length 3", "give 4 to 48"),
    ("info grr_coca --text-length 49", "give 4 to 48"),
    ("info grr_coca baseline_coca --batch 8", "name one"),
    ("info grr_coc", "did you mean"),
    ("info grr_coca baselin_coca", "did you mean"),
    ("info grr_coca --size tini", "did you mean"),
    ("pretrain mind.yaml", "there are mine.yaml"),
    ("pretrain mine.yaml --preset grr_cocoa", "did you mean 'grr_coca'?"),
    ("pretrain mine.yaml --data data/pears.tar", "pears.tar: no such file or folder … has pairs.tar"),
    ("pretrain mine.yaml --seed -1 --out run", "seed"),
    ("pretrain mine.yaml --out file", "error: file: a file, where the run folder should be; give another --out\n"),
    ("pretrain mine.yaml --out file/run", "file/run: a file, where the run folder should be; give another --out\n"),
    ("pretrain tune.yaml", "it is a recipe for fine-tuning"),
    ("pretrain tune.yaml --preset coca", "no key 'model'"),
    ("finetune tune.yaml", "give --checkpoint FOLDER"),
    ("finetune tune.yaml --checkpoint nowhere", "no such folder"),
    ("finetune mine.yaml --checkpoint $RUN", "remove the key 'tokenizer'"),
    ("demo", "no such plan here; run the demo in a clone of the project"),
    ("data check nowhere", "no such file or folder"),
    ("data stats nowhere", "no such file or folder"),
    ("data check split.tar --sheet no/a.png", "its folder does not exist"),
    ("data check split.tar --sheet images", "a folder; give --sheet the name of a PNG file"),
    ("data check split.tar --sheet sheet.csv", "'.csv' is not the suffix"),
    ("data convert split.tar out --pairs-per-shard 0", "--pairs-per-shard 0: give 1 or more"),
    ("data convert split.tar out --image-size 0", "--image-size 0: give 1 or more"),
    ("index --out new", "no index yet; give the images"),
    ("index nowhere --out new", "nowhere: no such file or folder"),
    ("index file --out new --batch-size 0", "give 1 or more"),
    ("index 'none-*.png' --out new", "no image matches this pattern"),
    ("index . nowhere --out new", "nowhere: no such file or folder"),
    ("index file --out file", "file: a file, but an index is a folder; give another name"),
    ("index '' --out $INDEX", "an empty path"),
    ("index --out $INDEX --forget ''", "an empty path"),
    ("index --out $INDEX --forget a --exclude b", "so --exclude would be lost; give images"),
    ("index --out $INDEX --forget nowhere", "nowhere: the index has no images of it; it has images of"),
    ("index images --out $INDEX -c $RUN", "an index of the model 'pictograms' … not of '$RUN/checkpoints/step-"),
    ("search $INDEX cat -c $RUN", "an index of the model 'pictograms' … not of '$RUN/checkpoints/step-"),
    ("search file cat", "file: a file, but an index is a folder"),
    ("search $INDEX", "the query is empty"),
    ("search $INDEX ' '", "the query is empty"),
    ("search $INDEX cat -n 0", "give a number from 1"),
    ("search $INDEX cat --where 'widht > 1'", "no field 'widht'; did you mean 'width'?"),
    ("search $INDEX cat --where '1=1; DROP TABLE pictures'", "--where"),
    ("search $INDEX cat --weights 1 2", "2 weights for 1 texts"),
    ("search $INDEX cat --weights=-1", "a weight must be above 0"),
    ("search $INDEX --image nowhere.png", "nowhere.png: no such file"),
    ("search $INDEX --image file cat", "cat: no such file; --image takes all that follows it"),
    ("search $INDEX --without red cat", "the query is empty; --without takes all that follows it"),
    ("search $INDEX cat --explain", "give it a name by --out"),
    ("search $INDEX cat --out page.pdf", "'.pdf' is not the suffix of a format"),
    ("search $INDEX cat --json -0", "different formats"),
    ("search $INDEX cat --without cat --weights 0.5", "nothing is left to look for"),
]
"""Commands, and what their message has, one piece after another."""

INPUTS = [
    "caption rows.jsonl -c $RUN --out rows.jsonl",
    "embed rows.parquet -c $RUN --out rows.parquet",
    "embed --texts v.keys.txt -c $RUN --out v.npy",
    "explain images/0.webp -c $RUN --out link.png",
    "evaluate $RUN --task captioning --data pairs.csv --out pairs.csv",
    "evaluate $RUN --task captioning --data dataset_coco.json#val --out dataset_coco.json",
]
"""Commands whose output is one of the files that they read."""

BELOW_A_FILE = [
    "caption images -c $RUN --out file/a.csv",
    "embed images -c $RUN --out file/v.npy",
    "embed --texts twice.txt -c $RUN --out file/v.npy",
    "explain images/0.webp -c $RUN --out file/maps.png",
    "evaluate $RUN --task captioning --data split.tar --out file/c.jsonl",
    "search $INDEX cat --out file/a.html",
    "export index $INDEX --out file/a.parquet",
]
"""Commands whose output has no place."""


@pytest.fixture
def there(tmp_path, image_files, monkeypatch):
    """The current folder, with files of the kinds that verbs read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no picture")
    for name in ("folder.csv", "folder.npy"):
        (tmp_path / name).mkdir()
    (tmp_path / "twice.txt").write_text("cat\ndog\nCat\nred  heart\nred heart\nbird\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    write_tar(tmp_path / "shard.tar", {"1.webp": real_pairs(1)[0].image})
    write_shard(tmp_path / "split.tar", real_pairs(16, split="test"))
    return tmp_path


@pytest.fixture
def placed(run, drawings):
    """Puts the places of a finished run and of an index into a text."""
    return lambda text: text.replace("$RUN", str(run.folder)).replace("$INDEX", str(drawings / "index"))


def state(folder):
    return sorted(folder.rglob("*")), snapshot(folder)


@pytest.mark.parametrize(("command", "told"), REFUSED, ids=[command[:80] for command, _ in REFUSED])
def test_wrong_use_is_told_in_one_line_and_writes_nothing(refused, there, placed, command, told):
    if command.startswith(("pretrain", "finetune")):
        recipe = tiny_recipe(write_shard(there / "data" / "pairs.tar", real_pairs(24)), steps=3)
        save_recipe(recipe, there / "mine.yaml")
        save_recipe(finetuning(recipe), there / "tune.yaml")
    before = state(there)
    message = refused(*shlex.split(placed(command)))
    assert [piece for piece in placed(told).split(" … ") if piece not in message] == []
    assert state(there) == before


@pytest.mark.parametrize("command", INPUTS)
def test_what_a_verb_reads_is_not_written_over(refused, there, placed, command):
    import pyarrow.parquet

    images = [str(path) for path in sorted((there / "images").iterdir())]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), there / "rows.parquet")
    (there / "rows.jsonl").write_text(json.dumps({"image": images[0], "caption": "a", "log_prob": -1.0}) + "\n")
    (there / "v.keys.txt").write_text("a cat\n")
    (there / "pairs.csv").write_text("image,caption\na.png,a cat\n")
    (there / "dataset_coco.json").write_text("{}")
    (there / "link.png").symlink_to("images/0.webp")
    before = state(there)
    assert "is an input, and would be overwritten" in refused(*shlex.split(placed(command)))
    assert state(there) == before


@pytest.mark.parametrize("command", BELOW_A_FILE)
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(refused, there, placed, monkeypatch, command):
    for work in ("load", "search.index.Index.search", "search.portable.export_parquet"):
        monkeypatch.setattr(f"grr_coca.{work}", lambda *_, **__: pytest.fail("too late"))
    monkeypatch.setattr("grr_coca.evaluate.caption_split.caption_split", lambda *_, **__: pytest.fail("too late"))
    out = command.split()[-1]
    assert f"{out}: cannot be written (file is a file)" in refused(*shlex.split(placed(command)))


@pytest.mark.parametrize("command", ["caption images -c $RUN --out pipe.csv", "embed images -c $RUN --out pipe.npy"])
def test_a_pipe_is_not_replaced_by_a_file(refused, there, placed, monkeypatch, command):
    monkeypatch.setattr("grr_coca.load", lambda *_: pytest.fail("too late"))
    pipe = there / command.split()[-1]
    os.mkfifo(pipe)
    (there / f"link{pipe.suffix}").symlink_to(pipe)
    for out in (pipe, there / f"link{pipe.suffix}"):
        message = refused(*shlex.split(placed(command))[:-1], out)
        assert f"{out}: is a device or a pipe, not a file" in message
    assert pipe.is_fifo()
