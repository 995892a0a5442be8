"""Tokenizers in the layouts of other models, trained on captions in five languages."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CAPTIONS = {
    "English": ["a red heart", "two cats and a dog", "the house by the sea, at night"],
    "German": ["ein rotes Herz", "zwei Katzen und ein Hund", "das Haus am Meer, bei Nacht: schöne Grüße"],
    "Japanese": ["赤いハート", "猫二匹と犬", "夜の海辺の家"],
    "Arabic": ["قلب أحمر", "قطتان وكلب", "المنزل على البحر ليلا"],
    "Hindi": ["लाल दिल", "दो बिल्लियाँ और एक कुत्ता", "रात में समुद्र के किनारे घर"],
}
ALL = [caption for captions in CAPTIONS.values() for caption in captions]


def like_bert():
    """WordPiece with [CLS] and [SEP]."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(ALL, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    ends = [("[CLS]", backend.token_to_id("[CLS]")), ("[SEP]", backend.token_to_id("[SEP]"))]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    return backend


def like_xlm_r():
    """Unigram with <s> and </s>, whose ids are 0 and 2."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        ALL, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return backend


def like_gpt2():
    """Byte-level BPE with one special token, which is both begin and end."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ALL,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def like_llama():
    """BPE with byte fallback, and <s> and </s>."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        CAPTIONS["English"], trainers.BpeTrainer(vocab_size=400, special_tokens=special[:3], show_progress=False)
    )
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    for token in special[3:]:
        vocab.setdefault(token, len(vocab))
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def of_words():
    """Words, with <s> and </s> as words like others."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = [*ALL, "<s> </s> <unk>"]
    backend.train_from_iterator(words, trainers.WordLevelTrainer(special_tokens=[], show_progress=False))
    return backend


KINDS = [like_bert, like_xlm_r, like_gpt2, like_llama, of_words]
