"""Tokenizers from any `tokenizer.json`: begin and end tokens, and captions in any language."""

import json
import pickle
from dataclasses import replace

import pytest
import tokenizers
from foreign_tokenizers import ALL, CAPTIONS, KINDS, like_bert, like_gpt2, like_llama, like_xlm_r, of_words
from PIL import Image
from support import ALONE, pretrain, real_pairs, tiny_recipe, with_caption, write_shard
from tokenizers import decoders, models, pre_tokenizers, trainers

import grr_coca as package
from grr_coca.common.errors import UserError
from grr_coca.data.tokenizer import Tokenizer, measure_lost_letters
from grr_coca.model.checkpoint import from_pretrained
from grr_coca.train.recipe import TokenizerRecipe, load_recipe, save_recipe
from grr_coca.train.setup import new_checkpoint


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def text(request) -> str:
    return request.param().to_str()


def test_foreign_tokenizer_gets_begin_and_end_tokens(text):
    tokenizer = Tokenizer.from_foreign(text)
    assert tokenizer.bos_id != tokenizer.eos_id
    for caption in (*ALL, "[CLS] [SEP] <s> </s> [BOS] [EOS] <|endoftext|>"):
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(caption)), "text is not a special token"
    row = tokenizer.encode_row(" ".join(["heart"] * 60), 40)
    assert (row[0], row[-2], len(row)) == (tokenizer.bos_id, tokenizer.eos_id, 40), "cut by us, and not by the file"
    assert len(tokenizer.encode("a red heart")) < 16, "nor padded by it"


def test_captions_in_any_language_round_trip(text):
    tokenizer = Tokenizer.from_foreign(text)
    again = Tokenizer.from_json(tokenizer.to_json())
    for captions in CAPTIONS.values():
        for caption in captions:
            ids = [tokenizer.bos_id, *tokenizer.encode(caption), tokenizer.eos_id, 0]
            assert "".join(tokenizer.decode(ids).split()) == "".join(caption.split()), "BERT parts Chinese characters"
            assert again.encode_row(caption, 50) == pickle.loads(pickle.dumps(tokenizer)).encode_row(caption, 50)
    assert measure_lost_letters(tokenizer, ALL)[0] == 0
    assert (again.bos_id, again.eos_id, again.largest_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.largest_id)


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        (like_bert, ("[CLS]", "[SEP]")),
        (like_xlm_r, ("[BOS]", "[EOS]")),  # a text with <s> has its id
        (like_gpt2, ("[BOS]", "[EOS]")),
        (like_llama, ("<s>", "</s>")),
        (of_words, ("[BOS]", "[EOS]")),
    ],
)
def test_known_special_tokens_are_used_and_others_added(kind, ends):
    backend = kind()
    tokenizer = Tokenizer.from_foreign(backend.to_str())
    vocabulary = {number: word for word, number in json_vocabulary(tokenizer).items()}
    assert (vocabulary[tokenizer.bos_id], vocabulary[tokenizer.eos_id]) == ends
    added = 2 * (ends[0] == "[BOS]")
    assert tokenizer.vocab_size == backend.get_vocab_size() + added


def json_vocabulary(tokenizer):
    return tokenizers.Tokenizer.from_str(tokenizer.to_json()).get_vocab()


def test_ids_with_gaps_are_an_error_if_tokens_must_be_added():
    content = json.loads(of_words().to_str())
    content["model"]["vocab"] = {word: number + 2 for word, number in content["model"]["vocab"].items()}
    with pytest.raises(UserError, match=r"\[BOS\] and \[EOS\] cannot be added, because the ids have gaps"):
        Tokenizer.from_foreign(json.dumps(content))


# --- In training


@pytest.fixture
def recipe(tmp_path):
    pairs = [with_caption(pair, ALL[i % len(ALL)]) for i, pair in enumerate(real_pairs(16))]
    recipe = tiny_recipe(write_shard(tmp_path / "pairs.tar", pairs), steps=2)

    def of(backend, **keys):
        (tmp_path / "my.json").write_text(backend if isinstance(backend, str) else backend.to_str())
        save_recipe(replace(recipe, tokenizer=TokenizerRecipe("file", path="my.json", **keys)), tmp_path / "mine.yaml")
        return load_recipe(tmp_path / "mine.yaml")

    return of


@pytest.mark.parametrize("kind", [like_bert, like_gpt2])
def test_model_is_trained_with_the_tokenizer_and_captions(recipe, kind, tmp_path):
    trained = pretrain(recipe(kind()), tmp_path / "run")
    assert trained.config.text_decoder.vocab_size == trained.tokenizer.largest_id + 1
    assert trained.tokenizer.to_json() == from_pretrained(tmp_path / "run").tokenizer.to_json()
    model = package.load(tmp_path / "run")
    assert isinstance(model.caption(Image.new("RGB", (16, 16))), str)
    assert model.embed_texts(ALL).shape == (15, trained.config.embed_dim)


def test_tokenizer_of_another_language_is_an_error(recipe):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(special_tokens=special, show_progress=False)
    backend.train_from_iterator(CAPTIONS["English"], trainer)
    with pytest.raises(
        UserError, match=r"my\.json: cannot represent \d+% of the letters in the captions, such as in '"
    ):
        new_checkpoint(recipe(backend), ALONE)


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("{", {}, r"my\.json: not a readable tokenizer\.json"),
        ("{}", {}, r"my\.json: not a readable tokenizer\.json"),
        (None, {"vocab_size": 500}, "vocab_size 500 does not match kind 'file', whose vocabulary is fixed by the file"),
    ],
)
def test_files_that_are_not_tokenizers_are_errors(recipe, content, keys, message):
    with pytest.raises(UserError, match=message):
        new_checkpoint(recipe(content or like_bert(), **keys), ALONE)


def test_file_that_is_missing_is_an_error(recipe, tmp_path):
    loaded = recipe(like_bert())
    (tmp_path / "my.json").unlink()
    with pytest.raises(UserError, match=r"my\.json: no such file"):
        new_checkpoint(loaded, ALONE)


@pytest.mark.parametrize("keys", [{"kind": "file"}, {"path": "a.json"}, {"kind": "clip", "path": "a.json"}])
def test_kind_and_path_belong_together(keys):
    with pytest.raises(UserError, match=r"kind 'file' and path .* require each other"):
        TokenizerRecipe(**keys)
