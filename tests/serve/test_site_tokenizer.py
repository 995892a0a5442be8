"""Tokenizers on a page without a server: supported ones are exported, and others are an error."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from foreign_tokenizers import ALL, KINDS

from grr_coca.common.files import MANIFEST
from grr_coca.data.tokenizer import Tokenizer, clip_bpe, train_bpe
from grr_coca.model.checkpoint_files import bundled_folder
from grr_coca_serve import site

SCRIPT = Path(site.__file__).parent / "page" / "files" / "tokenizer.js"
READ = """
import { readFileSync } from "fs";
const { Tokenizer } = await import(process.argv[2]);
const { files, texts } = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(files.map((file) => {
  try {
    const tokenizer = new Tokenizer(file);
    return texts.map((text) => [tokenizer.encode(text), tokenizer.decode(tokenizer.encode(text))]);
  } catch (error) {
    return error.message;
  }
})));
"""
TEXTS = [*ALL, "A  “quoted” café, 25% off!", "[BOS] <|endoftext|>", "l'été d'Élise 😀"]
TOKENIZERS = {
    **{kind.__name__: lambda kind=kind: Tokenizer.from_foreign(kind().to_str()) for kind in KINDS},
    "own": lambda: train_bpe(ALL, 400),
    "clip": clip_bpe,
}


@pytest.mark.ci
def test_page_reads_exported_files(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (tmp_path / "tokenizer.mjs").write_bytes(SCRIPT.read_bytes())
    (tmp_path / "read.mjs").write_text(READ)
    tokenizers = [make() for make in TOKENIZERS.values()]
    files = [json.loads(tokenizer.to_json()) for tokenizer in tokenizers]
    command = [node, str(tmp_path / "read.mjs"), (tmp_path / "tokenizer.mjs").as_uri()]
    given = json.dumps({"files": files, "texts": TEXTS})
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    for name, tokenizer, file, found in zip(TOKENIZERS, tokenizers, files, json.loads(done.stdout), strict=True):
        problem = site._unsupported_tokenizer_part(file)
        if isinstance(found, str):
            assert problem, (name, found)
        if not problem:
            assert found == [[tokenizer.encode(text), tokenizer.decode(tokenizer.encode(text))] for text in TEXTS], name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("like_bert", "a tokenizer of type WordPiece, only byte-level BPE"),
        ("like_xlm_r", "a tokenizer of type Unigram, only byte-level BPE"),
        ("like_gpt2", ""),
        ("like_llama", "the tokenizer's option byte_fallback"),
        ("of_words", "a tokenizer of type WordLevel, only byte-level BPE"),
        ("own", ""),
        ("clip", ""),
    ],
)
def test_tokenizers_that_the_page_cannot_read_are_named(name, problem):
    assert site._unsupported_tokenizer_part(json.loads(TOKENIZERS[name]().to_json())) == problem


@pytest.mark.parametrize(
    ("part", "step"),
    [
        ("normalizer", {"type": "NFKC"}),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "_"}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}),
        ("decoder", {"type": "ByteFallback"}),
    ],
)
def test_steps_that_the_page_does_not_have_are_named(part, step):
    file = json.loads(TOKENIZERS["own"]().to_json())
    file[part] = step
    assert site._unsupported_tokenizer_part(file) == f"the tokenizer's {part} {step['type']}"
    file[part] = None
    assert (
        "" if part == "normalizer" else f"a tokenizer without the {part} ByteLevel"
    ) == site._unsupported_tokenizer_part(file)


def test_export_web_names_a_tokenizer_that_it_cannot_export(grr_coca, tmp_path):
    shutil.copytree(bundled_folder("icons"), tmp_path / "model")
    (tmp_path / "model" / MANIFEST).unlink()
    (tmp_path / "model" / "tokenizer.json").write_text(KINDS[0]().to_str())
    result = grr_coca("export", "web", "-c", tmp_path / "model", "--out", tmp_path / "site")
    assert result.code == 2
    assert "tokenizer.json: the page does not support a tokenizer of type WordPiece, only byte-level BPE" in result.err
    assert not (tmp_path / "site").exists()
