"""Steps between the products of a forward, each compiled into one kernel where that is correct and
faster on this device.

In: a step in plain torch, on tensors whose first axis is tokens. Out: the step itself, or what
torch.compile made of it. On a GPU a step is bound by memory: compiled, it reads and writes its
tensors once instead of once for each operator. On a CPU oneDNN takes the larger steps into the
products (`linear.py`). Both forms are run at loading, on the model's own shapes, each compared
with the step in float32, and timed. Cost: seconds of compiling, kept in torch's cache on the node;
nothing without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.embed.engine import log

__all__ = ["Sample", "Step", "faster", "fastest", "gpu_seconds"]

Step = Callable[..., Tensor]
Sample = Callable[[int], tuple[Tensor, ...]]
"""Arguments of a step for a number of tokens."""

PROBED_TOKENS = (2048, 3000)
"""The second number makes torch compile for any number of tokens."""
TIMED_TOKENS = 65_536
"""So many that the kernels take longer than Python takes to queue them."""
ERROR_RATIO = 1.1
"""How far from float32 a compiled step may be, in errors of plain operators, which round each time.
"""
FLOAT32_NOISE = 1e-5
"""What the order of sums costs in float32, as a share of the largest number."""


def fastest(step: Step, sample: Sample, device: str, other: Step | None = None) -> Step:
    """`step`, or `other`, by default its compiled form, where that gives the same in less time. A
    compiler that fails leaves plain torch."""
    if not device.startswith("cuda"):
        return step
    try:
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no pool of processes for each worker
        return faster(step, other or torch.compile(step), sample, gpu_seconds)
    except Exception as error:  # noqa: BLE001  compilers fail in many ways; none may end a run
        log.info("%s stays in plain torch: %s", step.__name__, str(error).partition("\n")[0])
        return step


def faster(
    step: Step, compiled: Step, sample: Sample, seconds: Callable[[Step, tuple[Tensor, ...]], float]
) -> Step:
    """The faster of the two if they agree, else `step`. seconds: measures one call."""
    with torch.inference_mode():
        for n_tokens in PROBED_TOKENS:
            if not _is_as_near(step, compiled, sample(n_tokens)):
                problem = "%s stays in plain torch: compiled by torch %s it gives other results"
                log.warning(problem, step.__name__, torch.__version__)
                return step
        arguments = sample(TIMED_TOKENS)
        plain_s = seconds(step, arguments)
        compiled_s = seconds(compiled, arguments)
    times = "%s: %.0f us compiled, %.0f us in plain torch, %d tokens"
    log.info(times, step.__name__, compiled_s * 1e6, plain_s * 1e6, TIMED_TOKENS)
    return compiled if compiled_s < plain_s else step


def _is_as_near(step: Step, compiled: Step, arguments: tuple[Tensor, ...]) -> bool:
    """Whether the compiled step is as near to the step in float32 as the plain one, on average and
    at its worst."""
    exact = step(*(argument.float() for argument in arguments))
    noise = FLOAT32_NOISE * float(exact.abs().max())
    off, plain_off = (run(*arguments).float().sub_(exact).abs_() for run in (compiled, step))
    return all(
        bool(measure(off) <= ERROR_RATIO * measure(plain_off) + noise)
        for measure in (torch.mean, torch.max)
    )


def gpu_seconds(step: Step, arguments: tuple[Tensor, ...], repeats: int = 20) -> float:
    """Seconds of the device for one call, the mean of `repeats` in a row."""
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        step(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / repeats
