"""The candidates that turn texts into vectors, one function a kind.

In: a setting. Out: a function of texts and a batch size that returns vectors, (texts, D) float32,
in the texts' order. `ours`, `encode` and `pool` need this package's environment; `onnx`,
`openvino` and `fastembed` that of rivals/requirements.txt, into which this package is not
installed: their libraries want an older transformers. Models come from `rivals/exports.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import AVX512, cpu_flags

Encoder = Callable[[list[str], int], np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """KIND[:PRECISION][/PROCESSES], such as `openvino:qint8/2`: two processes share the texts, with
    one thread each; without a number it is one process with all threads."""

    kind: str
    precision: str = "float32"
    n_processes: int = 1

    @classmethod
    def parse(cls, text: str) -> Candidate:
        match = re.fullmatch(r"(\w+)(?::(\w+))?(?:/(\d+))?", text)
        if not match:
            raise ValueError(f"candidate {text!r} is not KIND[:PRECISION][/PROCESSES]")
        kind, precision, n_processes = match.groups()
        return cls(kind, precision or "float32", int(n_processes or 1))

    def __str__(self) -> str:
        precision = "" if self.precision == "float32" else f":{self.precision}"
        return f"{self.kind}{precision}" + (f"/{self.n_processes}" if self.n_processes > 1 else "")

    @property
    def export(self) -> str | None:
        """The file of `exports` that it loads: a key of EXPORTS."""
        if self.kind == "fastembed":
            return "onnx"
        name = f"{self.kind}:qint8" if self.precision == "qint8" else self.kind
        return name if name in EXPORTS else None


@dataclass(frozen=True)
class Setting:
    model: Path
    exports: Path
    precision: str
    n_threads: int
    device: str = "cpu"


def quantization() -> str:
    """The name that sentence-transformers gives to the 8 bits that fit this CPU."""
    flags = cpu_flags()
    if flags >= AVX512:
        return "avx512_vnni" if "avx512_vnni" in flags else "avx512"
    return "avx2"


def quantized_file(name: str) -> str:
    """Where sentence-transformers writes it; on AVX2 with unsigned weights."""
    return f"onnx/model_{'quint8' if name == 'avx2' else 'qint8'}_{name}.onnx"


EXPORTS = {
    "onnx": "onnx/model_O3.onnx",
    "onnx:qint8": quantized_file(quantization()),
    "openvino": "openvino/openvino_model.xml",
    "openvino:qint8": "openvino/openvino_model_qint8_quantized.xml",
}


def ours(setting: Setting) -> Encoder:
    from pipeline.embed import load_engine
    from pipeline.job.engine_options import EngineOptions
    from pipeline.job.model.store import resolve
    from pipeline.tokenize import load_tokenizer

    model = resolve(str(setting.model))
    tokenizer = load_tokenizer(model, max_tokens=model.max_tokens)
    options = EngineOptions.of(model, dtype=setting.precision, device=setting.device)
    engine = load_engine(
        model, options, threads=setting.n_threads if setting.device == "cpu" else None
    )

    def encode_texts(texts: list[str], _batch_size: int) -> np.ndarray:
        tokens = tokenizer.encode(texts)
        return engine.embed(tokens.ids, tokens.offsets)

    return encode_texts


def sentence_transformer(setting: Setting) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(setting.n_threads)
    return SentenceTransformer(
        str(setting.model),
        device=setting.device,
        model_kwargs={"dtype": getattr(torch, setting.precision)},
    )


def encode(setting: Setting) -> Encoder:
    loaded = sentence_transformer(setting)
    return lambda texts, batch_size: loaded.encode(texts, batch_size=batch_size)


def pool(setting: Setting) -> Encoder:
    """A process a core; the client has set OMP_NUM_THREADS to 1 for them."""
    loaded = sentence_transformer(setting)
    processes = loaded.start_multi_process_pool(["cpu"] * setting.n_threads)

    def encode_texts(texts: list[str], batch_size: int) -> np.ndarray:
        # four chunks a process: texts are sorted within a chunk, and the default has ten
        chunk_size = -(-len(texts) // (4 * setting.n_threads))
        return loaded.encode(texts, batch_size=batch_size, pool=processes, chunk_size=chunk_size)

    return encode_texts


def onnx(setting: Setting) -> Encoder:
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = setting.n_threads
    model_kwargs = {
        "file_name": EXPORTS["onnx" if setting.precision == "float32" else "onnx:qint8"],
        "provider": "CPUExecutionProvider",
        "session_options": session_options,
    }
    loaded = SentenceTransformer(
        str(setting.exports), device="cpu", backend="onnx", model_kwargs=model_kwargs
    )
    return lambda texts, batch_size: loaded.encode(texts, batch_size=batch_size)


def openvino(setting: Setting) -> Encoder:
    """In float32 it computes in bfloat16 where the CPU has that, unless it is told not to."""
    from sentence_transformers import SentenceTransformer

    ov_config = {"INFERENCE_NUM_THREADS": setting.n_threads}
    if setting.n_threads == 1:  # every process would pin its thread to the first core
        ov_config["ENABLE_CPU_PINNING"] = False
    if setting.precision != "qint8":
        ov_config["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[
            setting.precision
        ]
    file = EXPORTS["openvino:qint8" if setting.precision == "qint8" else "openvino"]
    loaded = SentenceTransformer(
        str(setting.exports),
        device="cpu",
        backend="openvino",
        model_kwargs={"file_name": file, "ov_config": ov_config},
    )
    return lambda texts, batch_size: loaded.encode(texts, batch_size=batch_size)


def fastembed(setting: Setting) -> Encoder:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    pooling = json.loads((setting.exports / "1_Pooling" / "config.json").read_text())
    is_cls = pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls"
    TextEmbedding.add_custom_model(
        model="local",
        pooling=PoolingType.CLS if is_cls else PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/local"),  # never asked: the path is given below
        dim=json.loads((setting.exports / "config.json").read_text())["hidden_size"],
        model_file=EXPORTS["onnx"],
    )
    loaded = TextEmbedding(
        "local", specific_model_path=str(setting.exports), threads=setting.n_threads
    )
    return lambda texts, batch_size: np.stack(list(loaded.embed(texts, batch_size=batch_size)))


KINDS: dict[str, Callable[[Setting], Encoder]] = {
    "ours": ours,
    "encode": encode,
    "pool": pool,
    "onnx": onnx,
    "openvino": openvino,
    "fastembed": fastembed,
}
PRECISIONS = {
    "ours": ("float32", "bfloat16", "int8"),
    "encode": ("float32", "bfloat16"),
    "pool": ("float32", "bfloat16"),
    "onnx": ("float32", "qint8"),
    "openvino": ("float32", "bfloat16", "qint8"),
    "fastembed": ("float32",),
}
ELSEWHERE = ("onnx", "openvino", "fastembed")
"""Kinds of the other environment."""
