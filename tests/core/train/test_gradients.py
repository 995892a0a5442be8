"""Gradients of the global batch: the same in one piece, in several, and on several ranks (traps 17 and 19).

In fp64 the error is that of the worst parameter: the norm of the difference of its gradients, relative to the norm of
its gradient in the reference (or to a millionth of the norm of all gradients, where that is more: a bias of keys moves
no attention). In fp32, where one pass is itself 1e-6 away from fp64, it is that of all gradients as one vector.
"""

import json

import pytest
import torch
from gradient_cases import (
    CASES,
    Task,
    computed,
    make_batch,
    make_model,
    on_a_rank,
    reference,
)
from processes import launch
from safetensors.torch import load_file
from torch import Tensor

from grr_coca.common.ranks import Ranks
from grr_coca.model.losses import EmbeddedPairs, contrastive_loss
from grr_coca.train.parallel import ParallelModel
from grr_coca.train.recipe import Parallelism
from grr_coca.train.step import compute_gradients, count_tokens

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6}


def error_of(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert gradients.keys() == expected.keys()
    norms = torch.stack([gradient.double().norm() for gradient in expected.values()])
    errors = torch.stack([(gradients[name].double() - expected[name].double()).norm() for name in expected])
    if all(gradient.dtype == torch.float64 for gradient in gradients.values()):
        return float((errors / norms.clamp(min=1e-6 * norms.norm())).max())
    return float(errors.norm() / norms.norm())


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_give_the_gradients_of_the_whole_batch(case):
    expected, expected_losses = reference(CASES[case], torch.float64)
    for size in (1, 3, 8) if case in ("grr_coca", "teacher") else (3, 8):
        gradients, losses = computed(CASES[case], torch.float64, size)
        assert error_of(gradients, expected) <= BOUNDS[torch.float64]
        assert {name: losses[name] for name in expected_losses} == pytest.approx(expected_losses, rel=1e-12)


@pytest.mark.parametrize("case", ["grr_coca", "sigmoid", "teacher"])
def test_micro_batches_match_the_full_batch_in_fp32(case):
    expected, _ = computed(CASES[case], torch.float32, 8)
    for size in (1, 3):
        gradients, _ = computed(CASES[case], torch.float32, size)
        assert error_of(gradients, expected) <= BOUNDS[torch.float32]


def test_comparison_is_differentiated_in_fp32_under_autocast():
    """In bf16, the gradients with respect to the embeddings were off by a thousandth."""
    case = CASES["grr_coca"]
    model, batch = make_model(case, torch.float32), make_batch(case, torch.float32)
    outputs = []

    def keep(_model, _inputs, output):
        for embedding in output[:2]:
            embedding.retain_grad()
        outputs.append(output)

    model.register_forward_hook(keep)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    parallel = ParallelModel(model, "ddp", Ranks.current(torch.device("cpu")))
    compute_gradients(parallel, [batch], count_tokens([batch]), case.losses, bf16)
    image, text = (embedding.detach().double().requires_grad_() for embedding in outputs[0][:2])
    pairs = EmbeddedPairs(image, text, batch.caption_ids, batch.image_ids)
    contrastive_loss(pairs, pairs, model.logit_scale.detach().double()).backward()
    for found, expected in zip(outputs[0][:2], (image, text), strict=True):
        assert (found.grad - expected.grad).norm() <= 1e-6 * expected.grad.norm()


KINDS: tuple[Parallelism, ...] = ("ddp", "fsdp")
TASKS = [
    *(Task(kind, case, torch.float64, 3) for kind in KINDS for case in CASES),
    *(
        Task(kind, "grr_coca", dtype, size)
        for kind in KINDS
        for dtype, size in ((torch.float64, 4), (torch.float32, 3))
    ),
]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """Folder of the gradients of all tasks, computed by two ranks.

    Each rank has four pairs: two micro-batches, of which the last is smaller.
    """
    folder = tmp_path_factory.mktemp("ranks")
    launched = launch(folder, on_a_rank, TASKS, folder, ranks=2)
    if launched.wait_or_crash():
        launched = launch(folder, on_a_rank, TASKS, folder, ranks=2)
    launched.finish()
    return folder


@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_the_gradients_of_one(on_two_ranks, kind):
    errors = {}
    for task in TASKS:
        if task.parallelism == kind:
            case, exact = CASES[task.case], task.dtype == torch.float64
            expected, _ = reference(case, task.dtype) if exact else computed(case, task.dtype, 8)
            errors[str(task)] = error_of(load_file(on_two_ranks / f"{task}.safetensors"), expected) / BOUNDS[task.dtype]
    assert max(errors.values()) <= 1, errors


@pytest.mark.ci
def test_fsdp_logs_no_warning(on_two_ranks):
    """It warns of outputs that are views: an operation in place on one would lose the hook that gathers weights."""
    for rank in range(2):
        assert "FSDP" not in (on_two_ranks / f"said-0-{rank}").read_text()


@pytest.mark.ci
def test_sharded_weights_are_gathered_again_after_evaluation(on_two_ranks):
    passes = load_file(on_two_ranks / "passes-0.safetensors")
    assert torch.equal(passes["after"], passes["before"])
    assert not torch.allclose(passes["during"], passes["before"], atol=1e-3)


@pytest.mark.ci
def test_every_rank_sees_the_losses_of_the_whole_batch(on_two_ranks):
    first, second = (json.loads((on_two_ranks / f"losses-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for task in TASKS:
        if task.dtype == torch.float64:
            _, expected = reference(CASES[task.case], torch.float64)
            assert {name: first[str(task)][name] for name in expected} == pytest.approx(expected, rel=1e-12)
