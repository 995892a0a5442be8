"""Blocks that are computed again, and compiled blocks: the same numbers under the same names."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import launch
from support import saved_bytes
from torch import nn

from grr_coca.common.errors import UserError
from grr_coca.common.torch_private import copy_modules
from grr_coca.data.batch import Batch
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import train_bpe
from grr_coca.infer.engine.torch import TorchEngine
from grr_coca.infer.fast.layers import fast_copy
from grr_coca.infer.generate import generate
from grr_coca.model.attention import Rotary, line_angles
from grr_coca.model.build import build
from grr_coca.model.coca import CoCa
from grr_coca.model.config import CoCaConfig
from grr_coca.model.losses import batch_loss
from grr_coca.train.blocks import CPP_COMPILERS, checkpoint_blocks, compile_blocks

PRESETS = ["grr_coca", "coca", "grr_coca+registers", "grr_coca+qk_norm", "grr_coca+stem"]


def _gradients(model: CoCa, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch_loss(model, batch).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("preset", PRESETS)
def test_checkpointed_blocks_have_identical_gradients(tiny_config, make_batch, preset):
    config = tiny_config(preset)
    plain, checkpointed, batch = build(config), build(config), make_batch(config)
    checkpoint_blocks(checkpointed)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    # Eight blocks keep nothing but their inputs; what is left is the rest of the model.
    assert saved_bytes(checkpointed, batch) < saved_bytes(plain, batch) / 3
    expected = _gradients(plain, batch)
    for name, gradient in _gradients(checkpointed, batch).items():
        assert torch.equal(gradient, expected[name]), name


def test_every_block_is_computed_again(tiny_config, make_batch):
    config = tiny_config()
    model, calls = build(config), []
    stacks = (model.image_encoder, model.text_decoder, model.multimodal_decoder)
    for block in (block for stack in stacks for block in stack.blocks):
        block.ffn_norm.register_forward_hook(lambda module, args, output: calls.append(id(module)))
    checkpoint_blocks(model)
    _gradients(model, make_batch(config))
    assert len(set(calls)) == 6
    assert all(calls.count(norm) == 2 for norm in calls)


def test_copies_run_their_own_checkpointed_blocks(tiny_config):
    model = build(tiny_config())
    checkpoint_blocks(model)
    for copied in (copy_modules(model), fast_copy(model)):
        assert all("forward" not in vars(module) for module in copied.modules())
    assert sum("forward" in vars(module) for module in model.modules()) == 6


def test_captioning_ignores_checkpointed_blocks(tiny_config):
    model = build(tiny_config())
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    tokenizer = train_bpe(["a red square"] * 2, 258)
    expected = generate(TorchEngine(model, Preprocess(16)), tokenizer, pixels).captions
    checkpoint_blocks(model)
    found = generate(TorchEngine(model, Preprocess(16)), tokenizer, pixels).captions
    assert [best.token_ids for best, *_ in found] == [best.token_ids for best, *_ in expected]


# --- Compiled blocks ---

# In a process of its own: the compiler cannot see through the checks of shapes that tests have.


def compare(
    backend: str, recomputed: float, config: CoCaConfig, batches: list[Batch], evaluated: list[Batch], file: Path
) -> None:
    """Compiled blocks beside plain ones, trained and evaluated; writes the graphs after each batch, and bytes kept.

    A block that is not one graph is an error.
    """
    import torch._dynamo  # lazy import, because it is slow
    from torch._dynamo.utils import counters

    compile_block = nn.Module.compile
    nn.Module.compile = partialmethod(compile_block, backend=backend, fullgraph=True)  # type: ignore[method-assign]
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    plain, compiled = build(config), build(config)
    compile_blocks(compiled, recomputed)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    graphs = []
    for batch in batches:
        expected = _gradients(plain, batch)
        for name, gradient in _gradients(compiled, batch).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    for batch in evaluated:
        with torch.inference_mode():
            outputs = (model.eval()(batch.images, batch.token_ids, batch.lengths) for model in (plain, compiled))
            expected_states, states = (output.states for output in outputs)
        torch.testing.assert_close(states, expected_states, rtol=1e-4, atol=1e-4)
    kept = {"plain": saved_bytes(plain, batches[0]), "compiled": saved_bytes(compiled, batches[0])}
    file.write_text(json.dumps({"graphs": graphs, "kept": kept}))


def rotate(file: Path) -> None:
    """Rotate with and without a compiler; writes the types of all tensors that the compiler sees."""
    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        values = [*inputs, *(node.meta.get("example_value") for node in graph.graph.nodes)]
        seen.extend(str(value.dtype) for value in values if isinstance(value, torch.Tensor))
        return graph.forward

    rotary, x = Rotary(line_angles(9, 8)), torch.randn(2, 5, 2, 3, 8, dtype=torch.bfloat16)
    for moved in (rotary, rotary.to(torch.bfloat16)):
        for positions in (slice(5), torch.tensor([3, 1, 8, 0, 2])):
            compiled = torch.compile(moved, backend=keep, fullgraph=True)
            torch.testing.assert_close(compiled(x, positions), moved(x, positions), rtol=0, atol=0)
    file.write_text(json.dumps(seen))


@pytest.mark.ci
def test_compiler_rotates_in_real_numbers(tmp_path):
    launch(tmp_path, rotate, tmp_path / "seen.json").finish()
    seen = set(json.loads((tmp_path / "seen.json").read_text()))
    assert "torch.float32" in seen
    assert not any("complex" in name for name in seen)


def _compared(folder: Path, *arguments: object) -> dict[str, Any]:
    launch(folder, compare, *arguments, folder / "compared.json").finish(600)
    return json.loads((folder / "compared.json").read_text())


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("grr_coca+registers", marks=pytest.mark.ci),
        pytest.param("grr_coca+stem", marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_are_traced_once_for_all_lengths(tiny_config, make_batch, tmp_path, preset):
    config = tiny_config(preset)
    batches = [make_batch(config, words) for words in ((3, 7, 1, 5), (12, 1, 1, 6), (5, 5, 4, 2))]
    found = _compared(tmp_path, "aot_eager", 0.75, config, batches, [])
    assert len(set(found["graphs"])) == 1, "captions of another length are compiled anew"
    assert found["kept"]["compiled"] < 0.7 * found["kept"]["plain"], "what is computed again is kept all the same"


@pytest.mark.slow
def test_compiled_blocks_support_dropout_and_evaluation(tiny_config, make_batch, tmp_path):
    if not any(map(shutil.which, CPP_COMPILERS)):
        pytest.skip("there is no C++ compiler")
    config = tiny_config("grr_coca+registers")
    batches = [make_batch(config, words) for words in ((3, 7, 1, 5), (2, 9, 4, 1), (12, 1, 1, 6), (5, 5, 4, 2))]
    batches.append(replace(batches[0], kept_patches=torch.tensor([[0, 3, 4, 9]] * 4)))
    evaluated = [make_batch(config, words) for words in ((3, 7, 1, 5), (3, 7, 1))]  # the last of a split is smaller
    _compared(tmp_path, "inductor", 0.5, config, batches, evaluated)
    result = "".join(path.read_text() for path in tmp_path.glob("said-*"))
    assert "complex operators" not in result


@pytest.mark.ci
@pytest.mark.parametrize("preset", ["grr_coca", "grr_coca+stem"])
def test_every_block_is_compiled(tiny_config, monkeypatch, preset):
    monkeypatch.setenv("CXX", sys.executable)  # no compiler is needed before the first step
    model = build(tiny_config(preset))
    compile_blocks(model)
    compiled = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    stacks = ("image_encoder", "text_decoder", "multimodal_decoder")
    stem = {"image_encoder.stem"} if preset == "grr_coca+stem" else set()
    assert compiled == stem | {f"{stack}.blocks.{i}" for stack in stacks for i in range(2)}


def test_missing_compiler_raises_before_the_first_step(tiny_config, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile: no C\+\+ compiler found \(no-such-compiler\)"):
        compile_blocks(build(tiny_config()))
