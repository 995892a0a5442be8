"""Every format that pairs come in, laid out as its makers do, from real images."""

import csv
import io
import json
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import encode_image, real_pairs, write_tar

from grr_coca.common.errors import UserError, install_command
from grr_coca.data.augmentation import Augmentation
from grr_coca.data.dataset import PairDataset
from grr_coca.data.isolated import decode_image
from grr_coca.data.order import SampleRef
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources import tables
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca.data.sources.open import open_source
from grr_coca.data.sources.views import caption_texts, every_caption
from grr_coca.data.tokenizer import train_bpe

NUM = 6
JPEGS = [encode_image(decode_image(pair.image, pair.name), "jpeg") for pair in real_pairs(NUM)]
FIVE = [
    tuple(f"{pair.caption}, seen {way}." for way in ("once", "twice", "near", "far", "now")) for pair in real_pairs(NUM)
]
ONE = [texts[0] for texts in FIVE]


def lay(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, JPEGS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def assert_pairs(source, captions, images=JPEGS):
    pairs = [source[i] for i in range(len(source))]
    assert [pair.image for pair in pairs] == list(images)
    assert [pair.captions for pair in pairs] == [(c,) if isinstance(c, str) else c for c in captions]
    assert [source.captions(i) for i in range(len(source))] == [pair.captions for pair in pairs]
    assert [source.caption(i) for i in range(len(source))] == [pair.caption for pair in pairs]
    assert [source.name(i) for i in range(len(source))] == [pair.name for pair in pairs]
    assert [source.image_name(i) for i in range(len(source))] == [pair.image_name or pair.name for pair in pairs]
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(len(again))] == pairs
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]


# --- img2dataset


def img2dataset_members(several=False):
    members = {}
    for i in range(NUM):
        about = {"caption": ONE[i], "url": f"https://example.org/{i}.jpg", "key": f"{i:09d}", "status": "success",
                 "error_message": None, "width": 64, "height": 64, "exif": "{}", "sha256": "0"}  # fmt: skip
        if several:
            about["captions"] = FIVE[i]
        members |= {f"{i:09d}.jpg": JPEGS[i], f"{i:09d}.txt": ONE[i].encode()}
        members[f"{i:09d}.json"] = json.dumps(about, indent=4).encode()
    return members


def test_img2dataset_shards_have_the_caption_of_the_txt(tmp_path):
    write_tar(tmp_path / "00000.tar", img2dataset_members())
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's table of what it fetched")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert_pairs(open_source(str(tmp_path)), ONE)


def test_shard_json_provides_several_captions(tmp_path):
    assert_pairs(open_source(str(write_tar(tmp_path / "00000.tar", img2dataset_members(several=True)))), FIVE)


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b'{"captions": []}', b'{"captions": [1]}', b'{"captions": "a cat"}', b"[" * 100_000]
)
def test_txt_is_used_if_the_json_of_a_pair_is_broken(tmp_path, damage):
    members = img2dataset_members(several=True) | {"000000002.json": damage}
    assert open_source(str(write_tar(tmp_path / "00000.tar", members)))[2].captions == (ONE[2],)


@pytest.mark.parametrize("damage", [b"{", b"[" * 100_000])
def test_corrupt_first_json_uses_txt_captions(tmp_path, damage):
    """The first one tells whether there are several captions."""
    members = img2dataset_members(several=True) | {"000000000.json": damage}
    assert_pairs(open_source(str(write_tar(tmp_path / "00000.tar", members))), ONE)


# --- COCO


def coco(names, captions=FIVE):
    images = [{"license": 1, "file_name": name, "coco_url": "http://…", "height": 64, "width": 64, "id": 900 - i}
              for i, name in enumerate(names)]  # fmt: skip
    annotations = [{"image_id": 900 - i, "id": 10 * k + i, "caption": texts[k]}
                   for k in range(5) for i, texts in enumerate(captions)]  # fmt: skip
    return json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations})


@pytest.mark.parametrize("images", ["train2017", "images/train2017", "annotations/train2017", "images"])
def test_coco_captions_find_images_in_common_folders(tmp_path, images):
    names = [f"{391895 + i:012d}.jpg" for i in range(NUM)]
    lay(tmp_path / images, names)
    source = open_source(str(write(tmp_path / "annotations" / "captions_train2017.json", coco(names))))
    assert_pairs(source, FIVE)


def test_missing_images_error_names_the_searched_folders(tmp_path):
    path = write(tmp_path / "annotations" / "captions_val2017.json", coco(["1.jpg"], FIVE[:1]))
    with pytest.raises(UserError, match=r"images such as 1\.jpg not found in .*val2017") as caught:
        open_source(str(path))
    assert str(tmp_path / "images" / "val2017") in str(caught.value)


def test_coco_image_without_annotation_is_a_bad_sample(tmp_path):
    lay(tmp_path / "train2017", ["1.jpg", "2.jpg"])
    source = open_source(str(write(tmp_path / "captions_train2017.json", coco(["1.jpg", "2.jpg"], FIVE[:1]))))
    with pytest.raises(BadSample) as caught:
        source[1]
    assert caught.value.cause is Cause.NO_CAPTION


def test_null_caption_is_read_as_missing(tmp_path):
    lay(tmp_path, ["1.jpg"])
    images = [{"id": 1, "file_name": "1.jpg"}]
    annotations = [{"image_id": 1, "caption": None}, {"image_id": 1, "caption": "a cat"}]
    path = write(tmp_path / "coco.json", json.dumps({"images": images, "annotations": annotations}))
    assert open_source(str(path))[0].captions == ("a cat",)
    image = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": None}, {"raw": "a dog"}]}
    path = write(tmp_path / "karpathy.json", json.dumps({"images": [image]}))
    assert open_source(str(path))[0].captions == ("a dog",)


# --- Karpathy


SPLITS = ["train", "restval", "val", "test", "train", "val"]


def karpathy(dataset, names, folders=None):
    images = []
    for i, name in enumerate(names):
        sentences = [{"tokens": text.lower().split(), "raw": text, "imgid": i, "sentid": 5 * i + k}
                     for k, text in enumerate(FIVE[i])]  # fmt: skip
        image = {"filename": name, "imgid": i, "split": SPLITS[i], "sentences": sentences,
                 "sentids": [sentence["sentid"] for sentence in sentences]}  # fmt: skip
        images.append(image | ({"filepath": folders[i], "cocoid": i} if folders else {}))
    return json.dumps({"images": images, "dataset": dataset})


@pytest.fixture
def karpathy_coco(tmp_path):
    folders = ["train2014", "val2014", "val2014", "val2014", "train2014", "val2014"]
    names = [f"COCO_{folder}_{i:012d}.jpg" for i, folder in enumerate(folders)]
    lay(tmp_path / "coco", [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)])
    return write(tmp_path / "coco" / "dataset_coco.json", karpathy("coco", names, folders))


@pytest.mark.parametrize(
    ("split", "kept"), [("val", [2, 5]), ("test", [3]), ("train", [0, 4]), ("train+restval", [0, 1, 4])]
)
def test_split_of_karpathys_coco_is_chosen_after_a_sharp(karpathy_coco, split, kept):
    source = open_source(f"{karpathy_coco}#{split}")
    assert_pairs(source, [FIVE[i] for i in kept], [JPEGS[i] for i in kept])


def test_karpathys_flickr30k_has_no_folders_in_its_paths(tmp_path):
    names = [f"{1000092795 + i}.jpg" for i in range(NUM)]
    lay(tmp_path / "flickr30k-images", names)
    path = write(tmp_path / "dataset_flickr30k.json", karpathy("flickr30k", names))
    assert_pairs(open_source(f"{path}#test"), [FIVE[3]], [JPEGS[3]])


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("", r"contains the splits restval, test, train, val; choose one, .*dataset_coco\.json#"),
        ("#vall", r"no split 'vall'; did you mean 'val'\?; the splits are restval, test, train, val"),
    ],
)
def test_missing_karpathy_split_lists_splits(karpathy_coco, suffix, message):
    with pytest.raises(UserError, match=message):
        open_source(f"{karpathy_coco}{suffix}")


def test_split_of_a_source_without_splits_is_an_error(tmp_path):
    lay(tmp_path / "images", ["1.jpg"])
    for path in (
        write(tmp_path / "captions_train2017.json", coco(["1.jpg"], FIVE[:1])),
        write(tmp_path / "pairs.csv", "path,caption\n1.jpg,a"),
    ):
        with pytest.raises(UserError, match="has no splits"):
            open_source(f"{path}#val")


# --- Flickr30K


@pytest.mark.parametrize("folder", ["flickr30k-images", "flickr30k_images"])
@pytest.mark.parametrize("path", ["results_20130124.token", "."])
def test_flickr30k_tokens_have_five_captions_per_image(tmp_path, folder, path):
    names = [f"{1000092795 + i}.jpg" for i in range(NUM)]
    lay(tmp_path / folder, names)
    lines = [f"{name}#{k}\t{FIVE[i][k]}\n" for i, name in enumerate(names) for k in range(5)]
    write(tmp_path / "results_20130124.token", "\ufeff" + "".join(lines))
    assert_pairs(open_source(str(tmp_path / path)), FIVE)


# --- ROCO


@pytest.mark.parametrize("path", ["", "radiology", "radiology/captions.txt"])
@pytest.mark.parametrize("naming", ["by id", "by article"])
def test_roco_v1_is_read_from_its_folder(tmp_path, path, naming):
    root = tmp_path / "train" / "radiology"
    identities = [f"ROCO_{i:05d}" for i in range(20, 20 + NUM)]
    articles = [f"PMC39702{i}_CRIONM2014-931546.00{i}.jpg" for i in range(NUM)]
    lay(root / "images", [f"{identity}.jpg" for identity in identities] if naming == "by id" else articles)
    write(root / "captions.txt", "".join(f"{i}\t {text}\n" for i, text in zip(identities, ONE, strict=True)))
    rows = [f"{i},{name},CC BY\n" for i, name in zip(identities, articles, strict=True)]
    write(root / "licences.txt", "".join(["ROCO_ID,PMC_ID,CC\n", *rows]))
    assert_pairs(open_source(str(tmp_path / "train" / path)), [f" {text}" for text in ONE])


@pytest.mark.parametrize("names", ["", "ROCO_00001\tPMC1.jpg\n"], ids=["no other names", "other names"])
def test_missing_roco_images_are_reported(tmp_path, names):
    write(tmp_path / "captions.txt", "ROCO_00001\ta scan\n")
    write(tmp_path / "licences.txt", names)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"captions\.txt: .*images"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("folder", ["train", "train_images", "train_images/train", "images/train", "."])
def test_roco_v2s_table_names_images_without_suffix(tmp_path, folder):
    identities = [f"ROCOv2_2023_train_{i:06d}" for i in range(NUM)]
    lay(tmp_path / folder, [f"{identity}.jpg" for identity in identities])
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["ID", "Caption"], *zip(identities, ONE, strict=True)])
    assert_pairs(open_source(str(write(tmp_path / "train_captions.csv", buffer.getvalue()))), ONE)


# --- Tables


ODD = ['a "quoted" cat', "two\nlines", "comma, and; more | bars", "ein Käse 🧀", "'", '5" pipe']


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
@pytest.mark.parametrize(
    "header",
    [("image_path", "caption"), ("File Name", "TEXT"), ("title", "img"), ("id", "x", "filename", "captions")],
)
def test_table_is_read_by_the_usual_names_of_its_columns(tmp_path, delimiter, header):
    names = [f"images/{i}.jpg" for i in range(NUM)]
    lay(tmp_path, names)
    rows = [header]
    for name, caption in zip(names, ODD, strict=True):
        cells = {"image_path": name, "File Name": name, "img": name, "filename": name, "id": "7", "x": "y"}
        rows.append([cells.get(column, caption) for column in header])
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    assert_pairs(open_source(str(write(tmp_path / "pairs.csv", "\ufeff" + buffer.getvalue()))), ODD)


@pytest.mark.parametrize(
    ("name", "text", "captions"),
    [
        ("a.csv", f"image,caption\n0.jpg,{'cat ' * 100_000}\n1.jpg,a dog", ["cat " * 100_000, "a dog"]),
        ("a.csv", f'image,caption\n0.jpg,"{"cat " * 100_000}"\n1.jpg,"a dog"', ["cat " * 100_000, "a dog"]),
        ("a.tsv", 'filepath\ttitle\r\n0.jpg\t"a" cat\r\n1.jpg\t5" pipe\r\n', ['"a" cat', '5" pipe']),
        ("a.csv", "0.jpg,a cat\n1.jpg,a dog\n", ["a cat", "a dog"]),
        ("a.csv", "image,caption\r\n0.jpg,a cat\rand a dog\r\n1.jpg,a bird\r", ["a cat and a dog", "a bird "]),
        ("a.tsv", "image\tcaption\r\n0.jpg\ta cat\rand a dog\r\n1.jpg\ta bird\r", ["a cat and a dog", "a bird "]),
        ("a.csv", 'image,caption\r\n"0.jpg",a cat\rand a dog\r\n1.jpg,a bird\r', ["a cat and a dog", "a bird "]),
        ("a.csv", 'image,caption\n\n0.jpg,"a\n\ncat"\n\n\n1.jpg,a dog\n\n', ["a\n\ncat", "a dog"]),
        ("a.csv", 'image,caption\n0.jpg,"a cat"\n1.jpg,"a" dog\n', ["a cat", "a dog"]),
    ],
    ids=[
        "long",
        "long and quoted",
        "quotes of a TSV",
        "no header",
        "return",
        "return in a TSV",
        "return after quotes",
        "empty lines between quotes",
        "words after a quote",
    ],
)
def test_caption_is_entire_cell(tmp_path, name, text, captions):
    lay(tmp_path / "images", ["0.jpg", "1.jpg"])
    assert_pairs(open_source(str(write(tmp_path / name, text))), captions, JPEGS[:2])


@pytest.mark.parametrize(("delimiter", "hint"), [(",", "put cells with ',' in quotes"), ("\t", "remove the tab")])
def test_unquoted_delimiter_makes_a_bad_sample(tmp_path, delimiter, hint):
    lay(tmp_path, ["0.jpg", "1.jpg"])
    rows = ["image,caption", "0.jpg,a cat, a dog", "1.jpg,a bird,"]
    path = write(tmp_path / "pairs.csv", "\n".join(rows).replace(",", delimiter))
    with pytest.raises(BadSample, match=f"row 1: .*3 cells for 2 columns; {hint}") as caught:
        open_source(str(path))[0]
    assert caught.value.cause is Cause.BAD_RECORD
    assert open_source(str(path))[1].caption == "a bird"
    assert open_source(str(path), needs_captions=False).image(0) == JPEGS[0]


def test_one_letter_rows_are_read(tmp_path):
    lay(tmp_path, ["1.jpg", "2.jpg"])
    for text in ("id\n1\n\n2\n", "id\r\n1\r\n\r\n2", "id\n1\n \n2"):
        source = open_source(str(write(tmp_path / "pairs.csv", text)), needs_captions=False)
        assert [source.image(i) for i in range(len(source))] == JPEGS[:2]


def test_json_lines_accept_one_or_several_captions(tmp_path):
    lay(tmp_path, [f"{i}.jpg" for i in range(NUM)])
    captions = [*ODD[:3], *FIVE[3:]]
    lines = [json.dumps({"file_name": f"{i}.jpg", "text": caption}) for i, caption in enumerate(captions)]
    text = "\n".join(["", *lines[:2], "", *lines[2:], "", ""])
    assert_pairs(open_source(str(write(tmp_path / "pairs.jsonl", text))), captions)
    (tmp_path / "pairs.jsonl").rename(tmp_path / "metadata.jsonl")
    assert_pairs(open_source(str(tmp_path)), captions)


def test_invalid_and_long_json_lines_are_bad_samples(tmp_path, monkeypatch):
    lay(tmp_path, ["0.jpg"])
    lines = [json.dumps({"image": "0.jpg", "caption": caption}) for caption in ("a cat", "a dog " * 50)]
    source = open_source(str(write(tmp_path / "pairs.jsonl", "\n".join([lines[0], '["0.jpg", "a cat"]', lines[1]]))))
    monkeypatch.setattr(tables, "_MAX_ROW", 200)
    assert source[0].caption == "a cat"
    for index, (message, cause) in enumerate(
        [("not a JSON object", Cause.BAD_RECORD), (r"too many bytes: 3\d\d \(limit 200\)", Cause.TOO_LARGE)], start=1
    ):
        with pytest.raises(BadSample, match=rf"pairs\.jsonl: row {index + 1}: .*{message}") as caught:
            source[index]
        assert caught.value.cause is cause


def test_half_an_emoji_in_a_caption_is_a_bad_sample(tmp_path):
    lay(tmp_path, ["0.jpg", "1.jpg"])
    lines = ['{"image": "0.jpg", "text": "a dog \\ud83d"}', '{"image": "1.jpg", "text": "a dog \\ud83d\\udc36"}']
    source = open_source(str(write(tmp_path / "pairs.jsonl", "\n".join(lines))))
    assert list(caption_texts(source)) == ["a dog 🐶"]
    dataset = PairDataset(source, train_bpe(ONE, 300), Preprocess(16), 24)
    with pytest.raises(BadSample, match=r"pairs\.jsonl: row 1, 0\.jpg: the caption is not UTF-8 text") as caught:
        dataset[SampleRef(0, 0)]
    assert caught.value.cause is Cause.BAD_TEXT
    assert dataset[SampleRef(0, 1)].key == "1"


def test_json_list_of_objects_is_read(tmp_path):
    lay(tmp_path / "images", [f"{i}.jpg" for i in range(NUM)])
    records = [
        {"image_id": f"coco_{i}", "image": f"{i}.jpg", "caption": text} for i, text in enumerate([*ONE[:3], *FIVE[3:]])
    ]
    assert_pairs(open_source(str(write(tmp_path / "train.json", json.dumps(records)))), [*ONE[:3], *FIVE[3:]])


def test_parquet_tables_are_read_and_a_pattern_joins_them(tmp_path):
    lay(tmp_path / "images", [f"{i}.jpg" for i in range(NUM)])
    for part in range(2):
        rows = range(3 * part, 3 * part + 3)
        captions = [list(FIVE[i]) for i in rows] if part else [ODD[i] for i in rows]
        table = pyarrow.table({"path": [f"images/{i}.jpg" for i in rows], "caption": captions})
        pyarrow.parquet.write_table(table, tmp_path / f"part-{part}.parquet")
    assert_pairs(open_source(str(tmp_path / "part-*.parquet")), [*ODD[:3], *FIVE[3:]])


def test_missing_pyarrow_error_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=re.escape(f"needs pyarrow; run: {install_command('parquet')}")):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("cell", [b"a cat", 7, [{"raw": "a cat"}], [["a cat"]]])
def test_parquet_caption_column_without_text_raises(tmp_path, cell):
    lay(tmp_path, ["0.jpg"])
    pyarrow.parquet.write_table(pyarrow.table({"image": ["0.jpg"], "caption": [cell]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: 'caption' must have texts or lists of texts, got "):
        open_source(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "list", "large_list"])
def test_parquet_captions_may_be_of_any_type_of_text(tmp_path, kind):
    lay(tmp_path, ["0.jpg", "1.jpg"])
    text = pyarrow.string()
    types = {"dictionary": pyarrow.dictionary(pyarrow.int32(), text), "list": pyarrow.list_(text)}
    cells = [["a cat", "a pet"], None] if "list" in kind else ["a cat", None]
    type_ = types.get(kind) or (pyarrow.large_list(text) if kind == "large_list" else getattr(pyarrow, kind)())
    columns = {"image": ["0.jpg", "1.jpg"], "caption": pyarrow.array(cells, type_)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=1)
    source = open_source(tmp_path / "a.parquet")
    assert source[0].captions == (("a cat", "a pet") if "list" in kind else ("a cat",))
    with pytest.raises(BadSample, match=r"row 2, 1\.jpg: the image has no caption"):
        source[1]


def test_rows_of_one_image_have_one_image_id(tmp_path):
    lay(tmp_path, ["0.jpg", "1.jpg"])
    source = open_source(str(write(tmp_path / "pairs.csv", "image,comment\n0.jpg,a cat\n0.jpg,a pet\n1.jpg,a dog\n")))
    dataset = PairDataset(source, train_bpe(ONE, 300), Preprocess(16), 24)
    ids = [dataset[SampleRef(0, i)].image_id for i in range(3)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "picture,words\n",
            "no column of the image's path (found picture, words); name the column image_path",
        ),
        ("a.csv", "image,words\n", "no column of the caption (found image, words); name the column caption"),
        ("a.tsv", "url\tcaption\nhttp://a/b.jpg\tx\n", "contains URLs, which are not downloaded"),
        ("a.jsonl", '{"picture": 1}\n', "no column of the image's path (found picture"),
        ("a.jsonl", "no json\n", "no column of the image's path (found none"),
        ("a.csv", "", "no column"),
        ("a.csv", "image,caption\n", "no pairs"),
        ("a.csv", "image,caption,caption\n", "several columns are named 'caption'; rename all but one"),
        ("a.jsonl", '{"image_id": 7, "caption": "a"}\n', "the first rows have no image path"),
        (
            "a.csv",
            'image,caption\na.jpg,"never closed\n' + "b.jpg,x\n" * 20_000,
            "row 1: a quote is not closed",
        ),
        ("a.csv", 'image,caption\na.jpg,"a ""cat"""\nb.jpg,"a dog\nc.jpg,a bird\n', "row 2: a quote is not closed"),
        ("a.csv", 'image,caption\na.jpg,"a cat\n\n', "row 1: a quote is not closed"),
        (
            "a.csv",
            f'image,caption\na.jpg,"{"x" * (2**24 + 1)}"\n',
            "row 1: a cell of more than 16,777,216 characters; make it short",
        ),
        ("a.csv", b"image,caption\nb.jpg,K\xe4se\n", "row 1: not UTF-8"),
        ("a.tsv", b"image\tcaption\nb.jpg\tK\xe4se\n", "row 1: not UTF-8"),
        (
            "a.csv",
            "image,caption\ra.png,a\r",
            "the first line cannot be read (lines end with only a carriage return, not with",
        ),
        ("a.csv", "path,caption\n../a.jpg,a\n", "the path leaves"),
        ("a.parquet", b"PAR1 and nothing else", "not a readable Parquet file"),
        ("results_20130124.token", "1.jpg#0\ta\nno tab\n", "line 2: expected"),
        ("results_20130124.token", "1.jpg#0\ta\n1.jpg\tb\n", "line 2: expected IMAGE.jpg#NUMBER, a tab and a caption"),
        *(
            ("a.json", content, "a.json: ")
            for content in ("", "{", "3", "[]", "[3]", "{}", '{"images": [3]}', '{"images": [{}], "annotations": [{}]}')
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unreadable_listing_error_states_the_content(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        open_source(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert message in str(caught.value)


def test_non_text_bytes_in_parquet_are_a_bad_sample(tmp_path):
    lay(tmp_path, ["0.jpg"])
    captions = pyarrow.array([b"a cat", b"K\xe4se"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"path": ["0.jpg"] * 2, "caption": captions}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert source[0].caption == "a cat"
    with pytest.raises(BadSample, match=r"a\.parquet: row 2: not UTF-8 text") as caught:
        source[1]
    assert caught.value.cause is Cause.BAD_TEXT


def test_broken_rows_are_bad_samples_and_the_others_are_read(tmp_path):
    lay(tmp_path, ["0.jpg"])
    rows = [b"0.jpg,a cat", b"only one cell", b"0.jpg,K\xe4se", b"gone.jpg,a dog", b",a bird", b"0.jpg,  "]
    (tmp_path / "a.csv").write_bytes(b"path,caption\n" + b"\n".join(rows) + b"\n")
    source = open_source(str(tmp_path / "a.csv"))
    assert source[0].image == JPEGS[0]
    causes = []
    for index in range(1, 5):
        with pytest.raises(BadSample, match=rf"a\.csv: row {index + 1}") as caught:
            source[index]
        causes.append(caught.value.cause)
        assert f"row {index + 1}" in source.name(index)
    assert causes == [Cause.BAD_RECORD, Cause.BAD_TEXT, Cause.NO_IMAGE, Cause.NO_IMAGE]
    assert source[5].caption == "  "
    with pytest.raises(BadSample, match=r"a\.csv: row 5, : the row has no image"):
        source.image(4)
    assert [source.image_path(index) for index in (0, 1, 4)] == [tmp_path / "0.jpg", None, None]


@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_too_long_file_name_is_a_bad_sample(tmp_path, suffix):
    lay(tmp_path, ["0.jpg"])
    source = open_source(str(write(tmp_path / "a.csv", f"path,caption\n{'x' * 300}{suffix},a\n0.jpg,b\n")))
    assert source[1].image == JPEGS[0]
    with pytest.raises(BadSample, match=r"row 1"):
        source[0]


def test_table_keeps_eight_bytes_a_row(tmp_path, monkeypatch):
    lay(tmp_path, ["0.jpg"])
    monkeypatch.setattr(tables, "_CHUNK_BYTES", 1000)
    path = write(tmp_path / "a.tsv", "path\tcaption\n" + "0.jpg\ta cat\n" * 5000)
    starts = open_source(str(path))._rows._starts
    assert starts.dtype == np.int64
    np.testing.assert_array_equal(np.diff(starts), 12)
    assert len(starts) == 5001


def open_files():
    return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


@pytest.fixture
def few_open_tables(monkeypatch):
    monkeypatch.setattr(tables, "_MAX_OPEN_TABLES", 3)
    tables._open_tables.cache_clear()
    yield
    tables._open_tables.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the list of open files is Linux's")
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_few_of_many_tables_are_open(tmp_path, few_open_tables, suffix):
    lay(tmp_path, ["0.jpg"])
    for number in range(12):
        rows = {"csv": f"path,caption\n0.jpg,{number}\n", "jsonl": f'{{"path": "0.jpg", "caption": "{number}"}}\n'}
        write(tmp_path / f"{number:02d}.{suffix}", rows[suffix])
    source = open_source(str(tmp_path / f"*.{suffix}"))
    sources = [source, pickle.loads(pickle.dumps(source))]
    with ThreadPoolExecutor(4) as pool:
        for each in (*sources, *sources):
            assert list(pool.map(each.caption, range(12))) == [str(number) for number in range(12)]
    assert sum(path.startswith(str(tmp_path)) for path in open_files()) <= 3


def test_deleted_or_truncated_table_yields_bad_samples(tmp_path, few_open_tables):
    lay(tmp_path, ["0.jpg"])
    paths = [write(tmp_path / f"{number}.csv", "path,caption\n0.jpg,a cat\n") for number in range(5)]
    source = open_source(str(tmp_path / "*.csv"))
    assert source.caption(0) == "a cat"
    paths[1].unlink()
    paths[0].write_text("path,caption\n0")
    for index, message in enumerate(["the table is shorter than before", r"cannot be read \(No such file"]):
        with pytest.raises(BadSample, match=rf"{index}\.csv: row 1: {message}") as caught:
            source.caption(index)
        assert caught.value.cause is Cause.UNREADABLE


# --- Nothing is executed, nothing is fetched, nothing outside the folder is read


@pytest.mark.parametrize("path", ["pipe:touch pwned", "http:example.org/a.tar", "file:///etc/passwd"])
def test_rejects_an_invalid_path_without_running_it(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing else is downloaded or executed"):
        open_source(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "written", ["../secret.jpg", "/etc/hostname", "a/../../secret.jpg", "pipe:touch pwned", "http://a/b.jpg"]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "coco"])
def test_listing_reads_nothing_outside_its_folder(tmp_path, monkeypatch, written, kind):
    root = tmp_path / "set"
    lay(root, ["0.jpg"])
    (tmp_path / "secret.jpg").write_bytes(JPEGS[1])
    monkeypatch.chdir(root)
    if kind == "csv":
        path = write(root / "a.csv", f"path,caption\n0.jpg,a\n{written},b\n")
    elif kind == "jsonl":
        path = write(root / "a.jsonl", "\n".join(json.dumps({"path": p, "text": "a"}) for p in ("0.jpg", written)))
    else:
        path = write(root / "captions_x.json", coco(["0.jpg", written], FIVE[:2]))
    source = open_source(str(path))
    assert source[0].image == JPEGS[0]
    with pytest.raises(BadSample) as caught:
        source[1]
    assert caught.value.cause is Cause.FORBIDDEN_PATH
    assert not (root / "pwned").exists()


def test_accepts_absolute_and_relative_paths_in_the_folder(tmp_path):
    lay(tmp_path, ["x/0.jpg", "1.jpg"])
    text = f"path,caption\n{tmp_path / 'x' / '0.jpg'},a\nx/../1.jpg,b\n"
    assert_pairs(open_source(str(write(tmp_path / "a.csv", text))), ["a", "b"], JPEGS[:2])


def test_file_whose_name_looks_like_a_url_is_a_file(tmp_path):
    lay(tmp_path, ["cam1-12:30:05.jpg"])
    source = open_source(str(write(tmp_path / "a.csv", "path,caption\ncam1-12:30:05.jpg,a cat\n")))
    assert_pairs(source, ["a cat"], JPEGS[:1])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the list of open files is Linux's")
def test_folder_instead_of_image_is_rejected_and_closed(tmp_path):
    lay(tmp_path, ["0.jpg", "folder/1.jpg"])
    source = open_source(str(write(tmp_path / "a.csv", "path,caption\n0.jpg,a\nfolder,b\n")))
    assert source[0].image == JPEGS[0]
    with pytest.raises(BadSample, match=r"row 2, folder: cannot be read \(not a regular file\)"):
        source[1]
    assert str(tmp_path / "folder") not in open_files()


def test_named_pipe_is_rejected_without_waiting(tmp_path):
    lay(tmp_path, ["0.jpg"])
    subprocess.run(["mkfifo", str(tmp_path / "1.jpg")], check=True)
    source = open_source(str(write(tmp_path / "a.csv", "path,caption\n0.jpg,a\n1.jpg,b\n")))
    with pytest.raises(BadSample) as caught:
        source[1]
    assert caught.value.cause is Cause.UNREADABLE


def test_rejects_member_names_outside_the_shard(tmp_path):
    places = ("0", "../1", "/2")
    members = {f"{at}{end}": data for at in places for end, data in ((".jpg", JPEGS[0]), (".txt", b"a"))}
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    assert source[0].image == JPEGS[0]
    for index in (1, 2):
        with pytest.raises(BadSample) as caught:
            source[index]
        assert caught.value.cause is Cause.FORBIDDEN_PATH


# --- Several captions an image


@pytest.fixture
def several(tmp_path):
    return open_source(str(write_tar(tmp_path / "00000.tar", img2dataset_members(several=True))))


def test_caption_depends_on_seed_epoch_and_index(several):
    tokenizer = train_bpe([text for texts in FIVE for text in texts], 300)

    def drawn(seed):
        dataset = PairDataset(several, tokenizer, Preprocess(16), 60, augmentation=Augmentation(), seed=seed)
        samples = dataset.__getitems__([SampleRef(epoch, i) for epoch in range(40) for i in range(NUM)])
        texts = [tokenizer.decode(sample.token_ids).strip() for sample in samples]
        return [texts[start : start + NUM] for start in range(0, len(texts), NUM)]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    for i in range(NUM):
        assert {epoch[i] for epoch in first} == {text.lower() for text in FIVE[i]}
    assert len(set(map(tuple, first))) > 20


def test_first_caption_has_the_requested_frequency(several):
    tokenizer = train_bpe([text for texts in FIVE for text in texts], 300)

    def share(first_caption: float) -> float:
        dataset = PairDataset(
            several, tokenizer, Preprocess(16), 60, augmentation=Augmentation(), first_caption=first_caption
        )
        samples = dataset.__getitems__([SampleRef(epoch, 0) for epoch in range(300)])
        return np.mean([tokenizer.decode(sample.token_ids).strip() == FIVE[0][0].lower() for sample in samples])

    assert share(0.0) == pytest.approx(1 / 5, abs=0.08)
    assert share(0.75) == pytest.approx(0.75 + 0.25 / 5, abs=0.08)


def test_evaluation_has_every_caption_and_one_id_per_image(several):
    view = every_caption(several)
    assert [view.caption(i) for i in range(len(view))] == [text for texts in FIVE for text in texts]
    dataset = PairDataset(view, train_bpe(ONE, 300), Preprocess(16), 60)
    samples = [dataset[SampleRef(0, i)] for i in range(len(dataset))]
    assert [len({sample.image_id for sample in samples[5 * i : 5 * i + 5]}) for i in range(NUM)] == [1] * NUM
    assert len({sample.image_id for sample in samples}) == NUM
    assert len({sample.caption_id for sample in samples}) == 5 * NUM
    assert samples[5].image.equal(samples[9].image)
    assert [view.image_name(i) for i in (0, 4, 5)] == [several.image_name(i) for i in (0, 0, 1)]


def test_every_caption_returns_source_with_single_captions(tmp_path):
    source = open_source(str(write_tar(tmp_path / "00000.tar", img2dataset_members())))
    assert every_caption(source) is source


def test_path_out_of_the_current_folder_is_forbidden(tmp_path, monkeypatch):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for place in ("outside.png", "in/a.png"):
        (tmp_path / place).write_bytes(real_pairs(1)[0].image)
    table = "image,caption\n../outside.png,out\na.png,a\n"
    (tmp_path / "in" / "a.csv").write_text(table)
    for here, written in (("in", "a.csv"), ("in/deep", "../a.csv")):
        monkeypatch.chdir(tmp_path / here)
        source = open_source(written)
        assert source[1].caption == "a"
        with pytest.raises(BadSample, match="the path leaves"):
            source[0]


def test_unrepresentable_cells_are_excluded(tmp_path):
    (tmp_path / "a.png").write_bytes(real_pairs(1)[0].image)
    far = pyarrow.array([2**62], pyarrow.timestamp("us"))
    columns = {"image": ["a.png"], "caption": ["a"], "far": far, "near": [3]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert dict(open_source(tmp_path / "a.parquet").fields(0)) == {"caption": "a", "near": 3}


@pytest.mark.parametrize(("twice", "found"), [("image", None), ("caption", None), ("n", {"caption": "a"})])
def test_duplicate_column_raises_or_is_ignored(tmp_path, twice, found):
    (tmp_path / "a.png").write_bytes(real_pairs(1)[0].image)
    names, cells = ["image", "caption", "n", twice], ["a.png", "a", "3", "4"]
    table = pyarrow.Table.from_arrays([pyarrow.array([cell]) for cell in cells], names=names)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    if found is None:
        with pytest.raises(UserError, match=rf"a\.parquet: several columns are named '{twice}'; rename all but one"):
            open_source(tmp_path / "a.parquet")
    else:
        assert dict(open_source(tmp_path / "a.parquet").fields(0)) == found
