"""The parts of a training step of `b32`, and the best time of each of its matrix products.

    python benchmarks/step_parts.py [--only full-bf16,coco-fp32]

A step in eager mode shows the shapes of its products. Each is then timed separately, and the sum of these times bounds
the MFU that this machine can reach. Profiles of compiled steps show what else takes time. Prints both tables for each
kind of step, and writes `results/step_parts.json`, anew after each. Three minutes for each kind on two cores.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
from harness import machine, parse, parser_of, seconds, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from training import BATCH, THREADS, WORDS, batch_lengths
from training_contestants import CPU_ATTENTION, Gemm, Ours

STEPS = [f"{lengths}-{precision}" for precision in ("bf16", "fp32") for lengths in WORDS]
ROUNDS, KERNELS = 5, 25


class Products(TorchDispatchMode):
    """Counts operators with FLOPs, by the form of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[Any, tuple[Any, ...]]] = Counter()
        self.flops: dict[tuple[Any, tuple[Any, ...]], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = {**flop_registry, **CPU_ATTENTION}.get(func._overloadpacket)
        if count is not None:
            key = func, tuple(_form(one) for one in args)
            self.calls[key] += 1
            shapes = [one.shape if isinstance(one, Tensor) else one for one in args]  # all that `CPU_ATTENTION` takes
            self.flops[key] = count(*shapes, **(kwargs or {}), out_val=out)
        return out


class Form(NamedTuple):
    """Shape, order in memory and precision of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def random(self) -> Tensor:
        """Return a tensor of this form."""
        size = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(size).to(self.dtype).as_strided(self.shape, self.stride)


def _form(value: Any) -> Any:
    return Form(value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def main() -> None:
    """Measure all kinds of steps, or those asked for."""
    options = parse(parser_of(__doc__, only=STEPS))
    found: dict[str, Any] = {}
    for name in STEPS[:1] if options.smoke else options.only:
        found[name] = measure(*name.split("-"), is_small=options.smoke is not None)
        show(name, found[name])
        write("step_parts", {"machine": machine(), "threads": THREADS, "batch": BATCH, "steps": found}, options.out)


def measure(lengths: str, precision: str, *, is_small: bool) -> dict[str, Any]:
    """Return the products and the other parts of one kind of step."""
    setup = {"threads": THREADS, "device": "cpu", "size": "b32", "precision": precision, "is_compiled": True}
    setup |= {"is_small": is_small, "gradient_checkpointing": 0.0}
    ceiling = max(Gemm(setup).rates().values())
    ours, captions = Ours(setup), batch_lengths(lengths, 2 if is_small else BATCH, 0)
    prepared = ours._batch(captions, 0)
    with torch.compiler.set_stance("force_eager"), Products() as products:
        ours.train(prepared)
    rows = []
    for key, calls in products.calls.items():
        func, forms = key
        inputs = [form.random() if isinstance(form, Form) else form for form in forms]
        best = min(seconds(lambda: func(*inputs)) for _ in range(ROUNDS))  # noqa: B023
        shapes = " · ".join("×".join(map(str, form.shape)) for form in forms if isinstance(form, Form))
        rate = products.flops[key] / best
        rows.append({"product": f"{func.__name__.partition('.')[0]} {shapes}", "calls": calls, "rate": rate})
        rows[-1] |= {"flops": calls * products.flops[key], "seconds": calls * best}
    for number in range(2):  # compiles
        ours.step(batch_lengths(lengths, len(captions), number, 0.3 if number == 0 else 0.5), number)
    flops, best = (sum(row[what] for row in rows) for what in ("flops", "seconds"))
    steps = [ours.step(captions, 0)["seconds"] for _ in range(1 if is_small else ROUNDS)]
    profile = ours.kernels(captions, 0, KERNELS)
    limits = {"mfu": flops / sorted(steps)[len(steps) // 2] / ceiling, "most_mfu": flops / best / ceiling}
    rows.sort(key=lambda row: -row["seconds"])
    return {"ceiling": ceiling, "steps": steps, "products": rows, "product_seconds": best, **limits, "profile": profile}


def show(name: str, found: dict[str, Any]) -> None:
    """Print the tables of one kind of step."""
    print(f"\n{name}: best product {found['ceiling'] / 1e9:.0f} GFLOP/s; steps {found['steps']}")
    print(f"products alone {found['product_seconds']:.2f} s, so MFU <= {found['most_mfu']:.0%}; now {found['mfu']:.0%}")
    for row in found["products"][:KERNELS]:
        share = row["rate"] / found["ceiling"]
        print(f"  {row['seconds']:.3f} s, {share:4.0%} of the best rate, {row['calls']:4} × {row['product']}")
    profile = found["profile"]
    print(f"profile of a compiled step, {profile['seconds']:.2f} s, of which {profile['busy']:.2f} s in operators:")
    for kernel, spent, calls in profile["top"]:
        print(f"  {spent:.3f} s, {calls:4} × {kernel}")


if __name__ == "__main__":
    main()
