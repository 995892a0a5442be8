"""The losses and their labels, against numbers worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grr_coca.batch import Batch
from grr_coca.config import CoCaConfig
from grr_coca.data.dataset import next_token_labels, pad_rows
from grr_coca.data.tokenizer import train_bpe
from grr_coca.losses import EmbeddedPairs, captioning_loss, coca_loss, contrastive_loss, same_pair
from grr_coca.model import build
from grr_coca.train.recipe import LossRecipe
from support import compute_losses

BOS, EOS, CLS_SLOT = 1, 2, 0

# Against texts along the axes, an image's similarities are its coordinates.
IMAGES = [[0.8, 0.6, 0.0], [0.0, 0.6, 0.8], [0.6, 0.0, 0.8]]
SCALE = 2.0


def _contrastive(same: Tensor) -> float:
    return _whole_batch(torch.tensor(IMAGES), torch.eye(3), math.log(SCALE), same).item()


def _whole_batch(images: Tensor, texts: Tensor, logit_scale: float, same: Tensor) -> Tensor:
    pairs = EmbeddedPairs(images, texts)
    return contrastive_loss(pairs, pairs, torch.tensor(logit_scale), None, same, first_row=0)


def _cross_entropy_by_hand(similarity: list[list[float]], masked: set[tuple[int, int]]) -> float:
    total = 0.0
    for i, row in enumerate(similarity):
        others = [math.exp(SCALE * s) for j, s in enumerate(row) if (i, j) not in masked]
        total += math.log(sum(others)) - SCALE * row[i]
    return total / len(similarity)


def _contrastive_by_hand(masked: set[tuple[int, int]]) -> float:
    transposed = [list(column) for column in zip(*IMAGES, strict=True)]
    back = {(j, i) for i, j in masked}
    return (_cross_entropy_by_hand(IMAGES, masked) + _cross_entropy_by_hand(transposed, back)) / 2


# --- Contrastive ---


def test_contrastive_is_the_mean_of_both_directions() -> None:
    loss = _contrastive(torch.eye(3, dtype=torch.bool))
    assert loss == pytest.approx(_contrastive_by_hand(set()), rel=1e-6)
    # The same in numbers: the first is log(e^1.6 + e^1.2 + e^0) - 1.6.
    image_to_text, text_to_image = [0.6271, 1.0271, 0.6271], [0.6271, 0.8334, 0.7893]
    assert loss == pytest.approx((sum(image_to_text) + sum(text_to_image)) / 6, abs=1e-4)


def test_contrastive_of_unrelated_embeddings_is_the_logarithm_of_the_batch_size() -> None:
    embedding = F.normalize(torch.ones(8, 4), dim=-1)
    loss = _whole_batch(embedding, embedding, 2.0, torch.eye(8, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(8), rel=1e-5)


@pytest.mark.parametrize(
    ("caption_ids", "image_ids", "masked"),
    [
        ([7, 8, 7], [1, 2, 3], {(0, 2), (2, 0)}),
        ([7, 8, 9], [1, 1, 3], {(0, 1), (1, 0)}),
        ([7, 7, 9], [1, 2, 2], {(0, 1), (1, 0), (1, 2), (2, 1)}),
        ([7, 7, 7], [1, 2, 3], {(i, j) for i in range(3) for j in range(3) if i != j}),
    ],
    ids=["equal captions", "one image with two captions", "both", "nothing but equals"],
)
def test_pairs_that_say_the_same_are_no_negatives(
    caption_ids: list[int], image_ids: list[int], masked: set[tuple[int, int]]
) -> None:
    same = same_pair(torch.tensor(caption_ids), torch.tensor(image_ids))
    assert {(i, j) for i in range(3) for j in range(3) if i != j and same[i, j]} == masked
    loss = _contrastive(same)
    assert loss == pytest.approx(_contrastive_by_hand(masked), rel=1e-6, abs=1e-7)
    assert loss < _contrastive_by_hand(set()) - 0.1, "counting them as negatives must be seen in the number"


def test_an_equal_caption_is_pushed_away_from_no_image() -> None:
    images = torch.tensor(IMAGES, requires_grad=True)
    texts = torch.eye(3, requires_grad=True)
    same = same_pair(torch.tensor([7, 8, 7]), torch.tensor([1, 2, 3]))
    _whole_batch(images, texts, 0.0, same).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad[0, 2] == 0
    assert images.grad[0, 1] > 0 > images.grad[0, 0]


# --- Captioning ---


def test_captioning_is_the_mean_over_tokens_and_not_over_rows() -> None:
    # Row 0 has one token of probability 1/2, row 1 three tokens of probability 1/4.
    logits = torch.full((2, 3, 4), 0.0)
    logits[0] = torch.tensor([math.log(3), 0.0, 0.0, 0.0])
    labels = torch.tensor([[0, -100, -100], [0, 1, 2]])
    over_tokens = (math.log(2) + 3 * math.log(4)) / 4
    over_rows = (math.log(2) + math.log(4)) / 2
    assert captioning_loss(logits, labels).item() == pytest.approx(over_tokens, rel=1e-6)
    assert abs(over_tokens - over_rows) > 0.1


def test_ignored_positions_have_neither_value_nor_gradient() -> None:
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    labels = torch.tensor([[1, -100, 3]])
    captioning_loss(logits, labels).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[0, 1], torch.zeros(4))
    assert logits.grad[0, 0].abs().sum() > 0
    wild = logits.detach().clone()
    wild[0, 1] = torch.tensor([1e4, -1e4, 0.0, 5.0])
    assert captioning_loss(wild, labels).item() == pytest.approx(math.log(4))


def test_captioning_of_bf16_logits_is_taken_in_fp32() -> None:
    logits = torch.randn(2, 5, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(10).reshape(2, 5)
    loss = captioning_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(captioning_loss(logits.float(), labels).item(), rel=1e-6)


# --- CoCa ---


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 2.0), 13.0), ((0.0, 2.0), 10.0), ((1.0, 0.0), 3.0)])
def test_coca_is_the_weighted_sum(weights: tuple[float, float], expected: float) -> None:
    losses = coca_loss(torch.tensor(3.0), torch.tensor(5.0), *weights)
    assert (losses.contrastive.item(), losses.captioning.item(), losses.coca.item()) == (3.0, 5.0, expected)


def test_a_step_combines_the_losses_of_its_batch(
    tiny_config: Callable[..., CoCaConfig], make_batch: Callable[..., Batch]
) -> None:
    config = tiny_config()
    model, batch = build(config), make_batch(config, num_words=(2, 6, 4))
    output = model(batch.images, batch.token_ids, batch.lengths)
    losses = compute_losses(model, batch, LossRecipe(contrastive_weight=0.5, captioning_weight=3.0))
    similarity = output.image_embedding @ output.text_embedding.T / 0.07
    contrastive = -(similarity.log_softmax(1).diag().mean() + similarity.log_softmax(0).diag().mean()) / 2
    picked = [
        output.logits[i, t].log_softmax(-1)[batch.token_ids[i, t + 1]]
        for i, length in enumerate(batch.lengths.tolist())
        for t in range(length - 2)
    ]
    captioning = -torch.stack(picked).mean()
    torch.testing.assert_close(losses.contrastive, contrastive, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.captioning, captioning, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.coca, 0.5 * contrastive + 3 * captioning, rtol=1e-5, atol=1e-5)


# --- Labels ---


def test_labels_are_shifted_once_and_end_with_the_end_token() -> None:
    token_ids, lengths = pad_rows(
        [[BOS, 11, 12, 13, EOS, CLS_SLOT], [BOS, 21, EOS, CLS_SLOT], [BOS, 31, 32, EOS, CLS_SLOT]]
    )
    assert lengths.tolist() == [6, 4, 5]
    assert token_ids.tolist() == [[1, 11, 12, 13, 2, 0], [1, 21, 2, 0, 0, 0], [1, 31, 32, 2, 0, 0]]
    assert next_token_labels(token_ids, lengths).tolist() == [
        [11, 12, 13, EOS],
        [21, EOS, -100, -100],
        [31, 32, EOS, -100],
    ]


def test_labels_leave_the_tokens_as_they_were() -> None:
    token_ids, lengths = pad_rows([[BOS, 11, 12, EOS, CLS_SLOT], [BOS, 21, EOS, CLS_SLOT]])
    before = token_ids.clone()
    next_token_labels(token_ids, lengths)
    assert torch.equal(token_ids, before)


def test_a_word_whose_id_is_that_of_padding_is_still_a_target() -> None:
    token_ids, lengths = pad_rows([[BOS, CLS_SLOT, 12, CLS_SLOT, EOS, CLS_SLOT], [BOS, CLS_SLOT, EOS, CLS_SLOT]])
    assert next_token_labels(token_ids, lengths).tolist() == [[0, 12, 0, EOS], [0, EOS, -100, -100]]


def test_a_caption_that_is_cut_keeps_its_end_token() -> None:
    tokenizer = train_bpe(["a red circle above a blue square"] * 3, 300)
    row = tokenizer.encode_row("a red circle above a blue square " * 20, context_length=12)
    assert len(row) == 12
    assert row[0] == tokenizer.bos_id
    assert row[-2:] == [tokenizer.eos_id, CLS_SLOT]
    assert row[1:-2] == tokenizer.encode("a red circle above a blue square " * 20)[:9]
    labels = next_token_labels(*pad_rows([row, tokenizer.encode_row("a red", 12)]))
    assert labels[0].tolist() == row[1:-1]
    assert labels[0, -1] == tokenizer.eos_id
    assert tokenizer.eos_id in labels[1].tolist()
