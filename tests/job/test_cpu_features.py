"""A dtype that the CPU of this machine would emulate is known while planning."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.job.cpu_features import check_dtype

ZEN_4 = "processor\t: 0\nflags\t\t: fpu sse avx2 avx512f avx512_bf16 avx512_vnni\n"
HASWELL = "processor\t: 0\nflags\t\t: fpu sse fma avx2\n"
IVY_BRIDGE = "processor\t: 0\nflags\t\t: fpu sse avx f16c\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "refused"),
    [
        (ZEN_4, set()),
        (HASWELL, {"bfloat16"}),
        (IVY_BRIDGE, {"bfloat16", "int8"}),
        (GRAVITON_3, set()),
        ("model name: something that lists no features\n", set()),
    ],
)
def test_a_dtype_without_instructions_is_refused(
    cpuinfo: str, refused: set[str], tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    for dtype in ("auto", "float32", "float16", "bfloat16", "int8"):
        if dtype in refused:
            with pytest.raises(SpecError, match=f"dtype {dtype}: .* Set model.dtype: float32"):
                check_dtype(dtype, file)
        else:
            check_dtype(dtype, file)


def test_a_system_without_the_file_is_not_asked(tmp_path: Path) -> None:
    check_dtype("int8", tmp_path / "none")
