"""Steps between the products of a forward, each in one kernel where that is right and faster on
this device.

In: a step in plain torch, on tensors whose first axis is tokens. Out: the step itself, or what
torch.compile made of it. On a GPU a step is bound by memory: compiled, it reads and writes its
tensors once instead of once an operator. On a CPU oneDNN takes the larger ones into the products
(`linear.py`). Nothing is believed: at loading both are run on the model's own shapes, compared and
timed. Cost: seconds of compiling, kept in torch's cache on the node; without a compiler nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.embed.engine import log

__all__ = ["Step", "faster", "fastest"]

Step = Callable[..., torch.Tensor]
Sample = Callable[[int], tuple[torch.Tensor, ...]]
"""Arguments of a step for so many tokens."""

PROBED_TOKENS = (2048, 3000, 8192)
"""The second number makes torch compile for any number; both are timed at the last."""
TOLERANCE = 0.02
"""Between results in bfloat16: the compiled step rounds once, plain operators each time."""


def fastest(step: Step, sample: Sample, device: str) -> Step:
    """`step`, or its compiled form where that gives the same in less time. What fails leaves plain
    torch."""
    if not device.startswith("cuda"):
        return step
    try:
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no pool of processes beside each worker
        return faster(step, torch.compile(step), sample, _gpu_seconds)
    except Exception as error:  # noqa: BLE001  compilers fail in many ways, and none of them may cost a run
        log.info("%s in plain torch: %s", step.__name__, str(error).partition("\n")[0])
        return step


def faster(
    step: Step,
    compiled: Step,
    sample: Sample,
    seconds: Callable[[Step, tuple[torch.Tensor, ...]], float],
) -> Step:
    """The faster one of both if they agree, else `step`. seconds: of one call."""
    with torch.inference_mode():
        for n_tokens in PROBED_TOKENS:
            arguments = sample(n_tokens)
            found, wanted = compiled(*arguments).float(), step(*arguments).float()
            if not torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                log.warning(
                    "%s in plain torch: compiled by torch %s it gives other results",
                    step.__name__,
                    torch.__version__,
                )
                return step
        plain_s, compiled_s = seconds(step, arguments), seconds(compiled, arguments)
    log.info(
        "%s: %.0f us compiled, %.0f us in plain torch, %d tokens",
        step.__name__,
        compiled_s * 1e6,
        plain_s * 1e6,
        n_tokens,
    )
    return compiled if compiled_s < plain_s else step


def _gpu_seconds(step: Step, arguments: tuple[torch.Tensor, ...], repeats: int = 20) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        step(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / repeats
