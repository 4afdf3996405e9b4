"""Whether the CPU of this machine computes in a dtype or can only emulate it, by the names of its
instructions: what `plan` can know without torch. Engines measure it when they load.

In: a dtype. Out: an error or nothing. Cost: one read of /proc/cpuinfo; other systems are not asked.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from pipeline.errors import SpecError

__all__ = ["NEEDED_NAMES", "check_dtype", "cpu_name"]

_CPUINFO = Path("/proc/cpuinfo")

_NEEDED = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16", "svebf16"},
    "int8": {"avx2", "asimddp", "i8mm"},
}
"""dtype -> instructions as Linux names them, one of which is enough."""

NEEDED_NAMES = {"bfloat16": "avx512_bf16 or amx_bf16", "int8": "avx2"}


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """What the CPU of this machine calls itself; its architecture where it does not say."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.M)
    except OSError:
        names = []
    return " ".join(names[0].split()) if names else platform.machine()


def check_dtype(dtype: str, cpuinfo: Path = _CPUINFO) -> None:
    """Raises SpecError for a dtype that would run 6 to 60 times slower than float32."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return
    features = {
        word
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }
    if features and dtype in _NEEDED and not features & _NEEDED[dtype]:
        raise SpecError(
            f"model.dtype {dtype}: the CPU of this machine has no instructions for it (no "
            f"{NEEDED_NAMES[dtype]}) and would emulate it, 6 to 60 times slower than float32. Set "
            "model.dtype: float32, or run on other machines with --address."
        )
