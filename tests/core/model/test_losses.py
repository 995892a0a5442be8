"""The losses and their labels, against numbers worked out by hand."""

import inspect
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grr_coca.data.batch import pad_rows
from grr_coca.data.dataset import find_next_tokens
from grr_coca.evaluate.split import aggregate, concatenate, run_pairs, scaling_of
from grr_coca.model import losses
from grr_coca.model.build import build
from grr_coca.model.losses import (
    SIBLING_TEMPERATURE,
    CaptioningLoss,
    EmbeddedPairs,
    LossWeights,
    batch_loss,
    captioning_loss,
    contrastive_loss,
    sibling_loss,
    teacher_loss,
    token_losses,
)

BOS, EOS, CLS_SLOT = 1, 2, 0

# Against texts along the axes, an image's similarities are its coordinates.
IMAGES = [[0.8, 0.6, 0.0], [0.0, 0.6, 0.8], [0.6, 0.0, 0.8]]
SCALE = 2.0


def _contrastive(caption_ids: Sequence[int] = (7, 8, 9), image_ids: Sequence[int] = (1, 2, 3)) -> float:
    return _whole_batch(torch.tensor(IMAGES), torch.eye(3), math.log(SCALE), caption_ids, image_ids).item()


def _whole_batch(
    images: Tensor,
    texts: Tensor,
    logit_scale: float,
    caption_ids: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
) -> Tensor:
    pairs = _pairs(images, texts, caption_ids, image_ids)
    return contrastive_loss(pairs, pairs, torch.tensor(logit_scale))


def _pairs(
    images: Tensor,
    texts: Tensor,
    caption_ids: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    teacher: Tensor | None = None,
) -> EmbeddedPairs:
    """Pairs, all of them different unless ids are given."""
    captions, ids = (
        torch.arange(len(texts)) if given is None else torch.tensor(given) for given in (caption_ids, image_ids)
    )
    return EmbeddedPairs(images, texts, captions, ids, teacher)


def _rows(pairs: EmbeddedPairs, rows: slice) -> EmbeddedPairs:
    return EmbeddedPairs(*(None if column is None else column[rows] for column in pairs))


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


def test_contrastive_is_the_mean_of_both_directions():
    loss = _contrastive()
    assert loss == pytest.approx(_contrastive_by_hand(set()), rel=1e-6)
    # The same in numbers: the first is log(e^1.6 + e^1.2 + e^0) - 1.6.
    image_to_text, text_to_image = [0.6271, 1.0271, 0.6271], [0.6271, 0.8334, 0.7893]
    assert loss == pytest.approx((sum(image_to_text) + sum(text_to_image)) / 6, abs=1e-4)


def test_unrelated_embeddings_have_log_batch_size_loss():
    embedding = F.normalize(torch.ones(8, 4), dim=-1)
    loss = _whole_batch(embedding, embedding, 2.0)
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
def test_pairs_with_equal_captions_are_not_negatives(caption_ids, image_ids, masked):
    loss = _contrastive(caption_ids, image_ids)
    assert loss == pytest.approx(_contrastive_by_hand(masked), rel=1e-6, abs=1e-7)
    assert loss < _contrastive_by_hand(set()) - 0.1, "counting them as negatives must be seen in the number"


# --- Text teacher ---


def test_sibling_loss_is_cross_entropy_of_siblings():
    images = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.5], [0.0, 1.0], [1.0, 0.2]]), dim=1)
    pairs = _pairs(images, images, image_ids=(0, 1, 2, 3))._replace(concept_ids=torch.tensor([5, 5, 6, 5]))
    similarity = (images @ images.T / SIBLING_TEMPERATURE).exp()
    by_hand = 0.0
    for image, siblings in ((0, (1, 3)), (1, (0, 3)), (3, (0, 1))):
        among = sum(similarity[image, other].item() for other in range(4) if other != image)
        by_hand -= sum(math.log(similarity[image, sibling].item() / among) for sibling in siblings) / 2
    assert sibling_loss(pairs, pairs).item() == pytest.approx(by_hand / 4, rel=1e-5)
    parts = [sibling_loss(_rows(pairs, slice(i, i + 1)), pairs) for i in range(4)]
    assert sum(part.item() for part in parts) == pytest.approx(by_hand / 4, rel=1e-5)


def test_sibling_loss_is_zero_without_siblings():
    images = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    alone = _pairs(images, images)._replace(concept_ids=torch.arange(3))
    assert sibling_loss(alone, alone).item() == 0
    twice = _pairs(images, images, image_ids=(1, 1, 1))._replace(concept_ids=torch.tensor([5, 5, 5]))
    assert sibling_loss(twice, twice).item() == 0


def test_siblings_are_not_negatives_with_any_captions():
    images = torch.tensor(IMAGES)
    pairs = _pairs(images, torch.eye(3))._replace(concept_ids=torch.tensor([1, 2, 1]))
    as_one = _pairs(images, torch.eye(3), caption_ids=(1, 2, 1))
    scale = torch.tensor(math.log(SCALE))
    assert contrastive_loss(pairs, pairs, scale) == contrastive_loss(as_one, as_one, scale)
    assert contrastive_loss(pairs, pairs, scale) != _contrastive()


def test_teacher_loss_is_divergence_of_similarities():
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    taught = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    # Of the first text: the teacher has (0.8, 0) / 0.5, we have (0, 0.6) / 0.5; and so on.
    by_hand = 0.0
    for target, found in (((0.8, 0.0), (0.0, 0.6)), ((0.8, 0.0), (0.0, 0.8)), ((0.0, 0.0), (0.6, 0.8))):
        p, q = ([math.exp(2 * x) / sum(math.exp(2 * y) for y in row) for x in row] for row in (target, found))
        by_hand += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    pairs = _pairs(ours, ours, teacher=taught)
    assert teacher_loss(pairs, pairs, 0.5).item() == pytest.approx(by_hand, rel=1e-5)
    assert by_hand > 0.3
    parts = [teacher_loss(_rows(pairs, slice(i, i + 1)), pairs, 0.5) for i in range(3)]
    assert sum(parts).item() == pytest.approx(by_hand, rel=1e-5)


def test_teacher_loss_is_zero_for_equal_similarities():
    taught = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    turned = F.pad(taught, (0, 3)) @ torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    pairs = _pairs(turned, turned, teacher=taught)
    assert teacher_loss(pairs, pairs, 0.1).item() == pytest.approx(0, abs=1e-12)


def test_equal_texts_are_excluded_from_the_teacher_loss():
    ours = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1).requires_grad_()
    equal, some = (_pairs(ours, ours, ids, teacher=torch.eye(3)) for ids in ([7, 7, 7], [7, 8, 7]))
    loss = teacher_loss(equal, equal, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert ours.grad is not None
    assert torch.equal(ours.grad, torch.zeros(3, 4))
    one_other = teacher_loss(some, some, 0.1)
    middle = teacher_loss(_rows(some, slice(1, 2)), some, 0.1)
    assert one_other.item() == pytest.approx(middle.item()), "texts 0 and 2 have one other each, so nothing to choose"


# --- Captioning ---


def _of_logits(logits: Tensor, labels: Tensor, *args: object) -> CaptioningLoss:
    """With the unit matrix for a head, states are logits."""
    return captioning_loss(logits, torch.eye(logits.shape[-1], dtype=logits.dtype), labels, *args)


def test_captioning_is_the_mean_over_tokens():
    # One token of probability 1/2, three of probability 1/4.
    logits = torch.zeros(4, 4)
    logits[0, 0] = math.log(3)
    loss = _of_logits(logits, torch.tensor([0, 0, 1, 2]))
    assert loss.captioning.item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4, rel=1e-6)
    assert loss.total == loss.captioning


def test_captioning_in_bf16_is_taken_in_fp32():
    logits = torch.randn(10, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss, wider = (_of_logits(x, torch.arange(10)).total for x in (logits, logits.float()))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wider.item(), rel=1e-6)


def test_z_loss_is_the_mean_squared_log_of_the_denominator():
    loss = _of_logits(torch.tensor([[0.0, 0.0], [1.0, 3.0], [2.0, 2.0]]), torch.tensor([0, 1, 1]), None, 0.5)
    log_z = [math.log(2), math.log(math.e + math.exp(3)), math.log(2 * math.exp(2))]
    assert loss.z.item() == pytest.approx(sum(z * z for z in log_z) / 3, rel=1e-6)
    assert loss.total.item() == pytest.approx((loss.captioning + 0.5 * loss.z).item(), rel=1e-6)


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize(("at_once", "in_cache"), [(1, 10**6), (7 * 11, 2 * 11), (10**6, 3 * 11), (10**6, 10**6)])
def test_head_and_loss_in_chunks_have_the_gradients_of_the_whole(monkeypatch, z_weight, at_once, in_cache):
    monkeypatch.setattr(losses, "MAX_LOGITS", at_once)
    monkeypatch.setattr(losses, "_MAX_BLOCK", in_cache)
    generator = torch.Generator().manual_seed(0)
    states, head = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (20, 11))
    labels = torch.randint(0, 11, (20,), generator=generator)
    states.requires_grad_()
    head.requires_grad_()
    logits = states @ head.T
    expected = F.cross_entropy(logits, labels) + z_weight * logits.logsumexp(1).square().mean()
    loss = captioning_loss(states, head, labels, z_weight=z_weight)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(3 * x, (states, head)) for x in (loss.total, expected)]
    for found, target in zip(*grads, strict=True):
        torch.testing.assert_close(found, target, rtol=1e-10, atol=1e-14)
    assert not loss.captioning.requires_grad
    assert not loss.z.requires_grad


class _Shapes(TorchDispatchMode):
    """Records the shape and the precision of each result."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.found.add((*out.shape, out.dtype))
        return out


def test_no_chunk_has_more_logits_than_the_maximum(monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOGITS", 33)
    with _Shapes() as shapes:
        captioning_loss(torch.randn(20, 5, requires_grad=True), torch.randn(11, 5), torch.arange(20) % 11)
    assert (3, 11, torch.float32) in shapes.found
    assert (20, 11, torch.float32) not in shapes.found


def test_logits_and_gradient_have_the_precision_of_the_product(monkeypatch):
    """In fp32, there is one block of them at a time."""
    monkeypatch.setattr(losses, "_MAX_BLOCK", 33)
    states, head = torch.randn(20, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    with _Shapes() as shapes, torch.autocast("cpu", torch.bfloat16):
        captioning_loss(states, head, torch.arange(20) % 11)
    assert {(20, 11, torch.bfloat16), (3, 11, torch.float32)} <= shapes.found
    assert (20, 11, torch.float32) not in shapes.found


@pytest.mark.parametrize("at_once", [1, 7 * 11, 10**6])
def test_mean_of_token_losses_is_the_captioning_loss(monkeypatch, at_once):
    monkeypatch.setattr(losses, "MAX_LOGITS", at_once)
    generator = torch.Generator().manual_seed(0)
    states, head = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (20, 11))
    labels = torch.randint(0, 11, (20,), generator=generator)
    found = token_losses(states, head, labels)
    log_probs = (states @ head.T).log_softmax(1)
    torch.testing.assert_close(found, -torch.stack([log_probs[t, label] for t, label in enumerate(labels)]))
    torch.testing.assert_close(found.mean(), captioning_loss(states, head, labels).captioning)


def test_similarities_are_compared_in_fp32_under_autocast():
    """A bf16 product of 100 times a cosine is off by half a nat."""
    image, text = (F.normalize(torch.randn(16, 64, generator=torch.Generator().manual_seed(n)), dim=-1) for n in (0, 1))
    exact = _whole_batch(image, text, math.log(100))
    with torch.autocast("cpu", torch.bfloat16):
        assert _whole_batch(image, text, math.log(100)).equal(exact)


def test_shares_of_captions_add_up_to_the_loss_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (16,), generator=generator)
    shares = [_of_logits(logits[rows], labels[rows], 16, 0.1) for rows in (slice(0, 1), slice(1, 9), slice(9, 16))]
    for whole, *parts in zip(_of_logits(logits, labels, None, 0.1), *shares, strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=1e-12)


# --- CoCa ---


# --- The tokens to predict ---


def test_next_tokens_are_shifted_once_and_end_with_the_end_token():
    token_ids, lengths = pad_rows(
        [[BOS, 11, 12, 13, EOS, CLS_SLOT], [BOS, 21, EOS, CLS_SLOT], [BOS, 31, 32, EOS, CLS_SLOT]]
    )
    assert lengths.tolist() == [6, 4, 5]
    assert token_ids.tolist() == [[1, 11, 12, 13, 2, 0], [1, 21, 2, 0, 0, 0], [1, 31, 32, 2, 0, 0]]
    assert find_next_tokens(token_ids, lengths).tolist() == [*[11, 12, 13, EOS], *[21, EOS], *[31, 32, EOS]]


def test_word_with_the_padding_id_is_still_a_target():
    token_ids, lengths = pad_rows([[BOS, CLS_SLOT, 12, CLS_SLOT, EOS, CLS_SLOT], [BOS, CLS_SLOT, EOS, CLS_SLOT]])
    assert find_next_tokens(token_ids, lengths).tolist() == [*[0, 12, 0, EOS], *[0, EOS]]


# --- Sigmoid ---


def test_sigmoid_by_hand():
    # Similarities 1, 0 / 0, 1 at scale 2 and bias -1: two matches of logit 1, two negatives of logit -1.
    pairs = _pairs(torch.eye(2), torch.eye(2))
    loss = contrastive_loss(pairs, pairs, torch.tensor(math.log(2)), torch.tensor(-1.0))
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-6)
    equal = _pairs(torch.eye(2), torch.eye(2), caption_ids=[7, 7])
    masked = contrastive_loss(equal, equal, torch.tensor(math.log(2)), torch.tensor(-1.0))
    assert masked.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_sigmoid_model_is_trained_and_evaluated_with_its_bias(tiny_config, make_batch):
    config = tiny_config("grr_coca+sigmoid")
    model, batch = build(config), make_batch(config)
    output = model(batch.images, batch.token_ids, batch.lengths)
    similarity = 10 * output.image_embedding @ output.text_embedding.T - 10
    signs = 2 * torch.eye(4) - 1
    expected = (1 + (-signs * similarity).exp()).log().sum() / 4
    found = batch_loss(model, batch)
    assert found.contrastive.item() == pytest.approx(expected.item(), rel=1e-5)
    evaluation = aggregate(concatenate(run_pairs(model, [batch])), scaling_of(model), 4, LossWeights())
    assert evaluation.contrastive_loss == pytest.approx(expected.item(), rel=1e-5)
    found.total.backward()
    assert model.logit_bias.grad.abs() > 0


# --- z-loss ---


def test_different_numbers_of_tokens_and_labels_raise():
    unchecked = inspect.unwrap(captioning_loss)  # tests check shapes, and users need not
    with pytest.raises(ValueError, match="4 states and 3 labels: the numbers must be equal"):
        unchecked(torch.zeros(4, 4), torch.eye(4), torch.tensor([0, 1, 2]))


def test_second_derivative_raises():
    states, head = (torch.randn(n, 5, requires_grad=True) for n in (3, 7))
    loss = captioning_loss(states, head, torch.tensor([0, 1, 2])).total
    with pytest.raises(RuntimeError, match="can be differentiated only once; do not use create_graph=True"):
        torch.autograd.grad(loss, states, create_graph=True)
    assert torch.autograd.grad(loss, head)[0].shape == head.shape
