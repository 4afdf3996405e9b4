"""What a figure was measured on: the instruction set and the model of this CPU, for the header of
every benchmark. Read from /proc/cpuinfo, so that it is the same in every environment, without what
avx2_only.c hides from this process."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
"""What libraries ask for before they use 512 bits."""
EXTENSIONS = {
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
}
"""Flag of the kernel -> what it speeds up."""
HIDDEN = ("avx512", "avx_vnni", "amx")
"""How the flags begin that avx2_only.c hides."""


@cache
def cpu_info() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().partition("\n\n")[0] if path.exists() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def is_avx2_only() -> bool:
    """Whether avx2_only.c is loaded before this process."""
    return "avx2_only" in os.environ.get("LD_PRELOAD", "")


def cpu_flags() -> set[str]:
    """As the libraries of this process see them."""
    flags = set(cpu_info().get("flags", "").split())
    return {flag for flag in flags if not flag.startswith(HIDDEN)} if is_avx2_only() else flags


def instruction_set(flags: set[str]) -> str:
    """Such as "AVX-512 with VNNI and bf16", or "AVX2"."""
    if flags >= AVX512:
        name = "AVX-512"
    elif flags >= {"avx2", "fma"}:
        name = "AVX2"
    else:
        return "neither AVX-512 nor AVX2"
    extensions = list(dict.fromkeys(word for flag, word in EXTENSIONS.items() if flag in flags))
    return f"{name} with {' and '.join(extensions)}" if extensions else name


def cpu_name() -> str:
    """Such as "AVX-512 with VNNI and bf16, Intel(R) Xeon(R) Processor (model 207), 2 cores"."""
    info = cpu_info()
    model = f"{info.get('model name', 'unknown CPU')} (model {info.get('model', 'unknown')})"
    n_cores = len(os.sched_getaffinity(0))
    cores = "1 core" if n_cores == 1 else f"{n_cores} cores"
    hidden = " (all else hidden)" if is_avx2_only() else ""
    return f"{instruction_set(cpu_flags())}{hidden}, {model}, {cores}"
