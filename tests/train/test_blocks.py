"""Blocks that are computed again, and compiled blocks: the same numbers under the same names."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grr_coca.batch import Batch
from grr_coca.config import CoCaConfig
from grr_coca.data.tokenizer import train_bpe
from grr_coca.errors import UserError
from grr_coca.generate import generate
from grr_coca.model import CoCa, build
from grr_coca.train.step import blocks
from grr_coca.train.step.blocks import checkpoint_blocks, compile_blocks
from support import compute_losses, saved_bytes

PRESETS = ["grr_coca", "coca", "grr_coca_registers", "grr_coca_qk_norm"]


def _gradients(model: CoCa, batch: Batch) -> dict[str, torch.Tensor]:
    compute_losses(model, batch).trained.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("preset", PRESETS)
def test_checkpointed_blocks_have_the_same_gradients_bit_for_bit_and_keep_less(
    tiny_config: Callable[..., CoCaConfig], make_batch: Callable[..., Batch], preset: str
) -> None:
    config = tiny_config(preset)
    plain, checkpointed, batch = build(config), build(config), make_batch(config)
    checkpoint_blocks(checkpointed)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    # Eight blocks keep nothing but their inputs; what is left is the rest of the model.
    assert saved_bytes(checkpointed, batch) < saved_bytes(plain, batch) / 3
    expected = _gradients(plain, batch)
    for name, gradient in _gradients(checkpointed, batch).items():
        assert torch.equal(gradient, expected[name]), name


def test_every_block_is_computed_again(
    tiny_config: Callable[..., CoCaConfig], make_batch: Callable[..., Batch]
) -> None:
    config = tiny_config()
    model, calls = build(config), []
    stacks = (model.image_encoder, model.text_decoder, model.multimodal_decoder)
    for block in (block for stack in stacks for block in stack.blocks):
        block.ffn_norm.register_forward_hook(lambda module, args, output: calls.append(id(module)))
    checkpoint_blocks(model)
    _gradients(model, make_batch(config))
    assert len(set(calls)) == 6
    assert all(calls.count(norm) == 2 for norm in calls)


def test_captioning_takes_no_notice_of_checkpointed_blocks(
    tiny_config: Callable[..., CoCaConfig], make_batch: Callable[..., Batch]
) -> None:
    config = tiny_config()
    model, images = build(config), make_batch(config).images
    tokenizer = train_bpe(["a red square"] * 2, 258)
    expected = generate(model, tokenizer, images).captions
    checkpoint_blocks(model)
    found = generate(model, tokenizer, images).captions
    assert [best.token_ids for best, *_ in found] == [best.token_ids for best, *_ in expected]


# --- Compiled blocks ---

SCRIPT = """
import sys
import torch
import torch._dynamo
from dataclasses import replace
from functools import partial
from torch import nn
from torch._dynamo.utils import counters

backend = sys.argv[1]
compile = nn.Module.compile
nn.Module.compile = lambda self, **options: compile(self, backend=backend, **options)
torch._dynamo.config.fail_on_recompile_limit_hit = True
torch.set_num_threads(1)

import conftest
from grr_coca.model import build
from grr_coca.train.step.blocks import compile_blocks
from support import compute_losses, saved_bytes

make_batch = conftest.make_batch.__wrapped__()
config = conftest.tiny_config.__wrapped__()("grr_coca_registers")
plain, compiled = build(config), build(config)
compile_blocks(compiled, float(sys.argv[2]))
assert compiled.state_dict().keys() == plain.state_dict().keys()

def gradients(model, batch):
    model.zero_grad()
    compute_losses(model, batch).trained.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

def check(batch):
    expected, found = (gradients(model, batch) for model in (plain, compiled))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)

def graphs():
    return counters["stats"]["unique_graphs"]

check(make_batch(config, (3, 7, 1, 5)))
after_first = graphs()
for words in ((2, 9, 4, 1), (12, 1, 1, 6), (5, 5, 4, 2)):
    check(make_batch(config, words))
assert graphs() == after_first, "captions of another length are compiled anew"

kept = torch.tensor([[0, 3, 4, 9]] * 4)
check(replace(make_batch(config, (3, 7, 1, 5)), kept_patches=kept))
for count in (4, 3):  # the last batch of a split is smaller
    batch = make_batch(config, (3, 7, 1, 5)[:count])
    with torch.inference_mode():
        outputs = (model.eval()(batch.images, batch.token_ids, batch.lengths) for model in (plain, compiled))
        expected, found = (output.states for output in outputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
print("graphs", after_first, graphs())
print("kept", saved_bytes(compiled, make_batch(config, (12, 12, 12, 12))))
"""
"""Runs in a process of its own: the compiler cannot see through the checks of shapes that tests have."""


def _run_compiled(backend: str, recomputed: float = 0.0) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parents[1]
    hook_free = "import jaxtyping; jaxtyping.install_import_hook = lambda *args: None"
    code = f"import sys; sys.path.insert(0, {str(tests)!r})\n{hook_free}\n{SCRIPT}"
    command = [sys.executable, "-c", code, backend, str(recomputed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_compiled_blocks_are_traced_once_for_all_lengths_and_give_the_same_gradients() -> None:
    kept = [int(_run_compiled("aot_eager", share).stdout.split("kept ")[1]) for share in (0.0, 0.75)]
    assert kept[1] < 0.7 * kept[0], "what is computed again is kept all the same"


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients_in_machine_code() -> None:
    try:
        blocks._require_compiler()
    except UserError as error:
        pytest.skip(str(error))
    assert "complex operators" not in _run_compiled("inductor", 0.5).stderr


def test_every_block_is_compiled(tiny_config: Callable[..., CoCaConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_require_compiler", lambda: None)
    model = build(tiny_config())
    compile_blocks(model)
    compiled = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    stacks = ("image_encoder", "text_decoder", "multimodal_decoder")
    assert compiled == {f"{stack}.blocks.{i}" for stack in stacks for i in range(2)}


def test_a_missing_compiler_is_told_before_the_first_step(
    tiny_config: Callable[..., CoCaConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile: no C\+\+ compiler found \(no-such-compiler\)"):
        compile_blocks(build(tiny_config()))
