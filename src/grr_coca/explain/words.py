"""Groups the tokens of a caption into words."""

from collections.abc import Sequence

from grr_coca.data.tokenizer import Tokenizer


def group_words(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The words of a caption, each with the positions of its tokens.

    A token begins a new word if the text up to and including it has one word more than the text before it. That holds
    for every vocabulary, however it marks the space between words.
    """
    words: list[list[int]] = []
    for position in range(len(token_ids)):
        count = len(tokenizer.decode(token_ids[: position + 1]).split())
        if count > len(words) or not words:
            words.append([])
        words[-1].append(position)
    texts = tokenizer.decode(token_ids).split()
    return list(zip(texts, words, strict=False))
