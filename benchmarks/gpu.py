"""How near is the engine to the GPU's limit, and how far ahead of sentence-transformers?

    python -m benchmarks.gpu --family bert [--lengths 32,128,512,mix] [--tokens 1000000]
                             [--no-compile] [--no-ray] [--models FOLDER]
    python -m benchmarks.gpu --family bert --device cpu --tiny     smoke test without a GPU

In: nothing; the directory has the exact configuration of sup-simcse-ja-large (bert),
sarashina-embedding-v1-1b (llama), ruri-v3-310m (modernbert) or Qwen3-Embedding-0.6B (qwen3) with
random weights and a synthetic vocabulary. Out: parity,
ceilings and one row a candidate and length: A  SentenceTransformer.encode from text, best of its
batch sizes (the tokenizer is a fast one, which flatters A)
B  the same forward fed with ids in the same order        C  B under torch.compile
D  Ray Data map_batches around A then our padded and packed engines from ids, the latter also with
no step compiled. C and D are left out, with the reason, where a compiler or ray is missing. Tokens
are real tokens only; MFU is multiplications for real tokens over the GEMM ceiling measured in the
same run; busy is the time of kernels and copies over the wall time of one more run under the
profiler (kernels that overlap count twice). It needs torch, transformers, sentence-transformers and
safetensors, neither ray nor MeCab.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu_models import MODELS, make_model, model_folder
from benchmarks.gpu_timing import busy_share, timed
from benchmarks.machine import cpu_name
from benchmarks.reference import encode_from_ids, min_cosine
from pipeline.embed import load_engine, steps
from pipeline.embed.fused import Step
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import read_model

BATCHES = (32, 64, 128, 256, 512)
EXACT_TOKENS = 8192  # for the model in float32 on a CPU, 20 TFLOP


def make_texts(length: str, n_tokens: int, seed: int = 0) -> list[str]:
    """Texts of exactly `length` tokens, or of a lognormal mix with a mean of about 100; two are
    special tokens."""
    rng = np.random.default_rng(seed)
    if length == "mix":
        sizes = np.clip(rng.lognormal(4.35, 0.7, max(16, n_tokens // 100)), 8, 512).astype(int)
    else:
        sizes = np.full(max(16, n_tokens // int(length)), int(length))
    return [" ".join(f"w{i}" for i in rng.integers(0, 500, size - 2)) for size in sizes]


def gflop(config: dict[str, Any], n_tokens: np.ndarray, family: str) -> float:
    """Multiplications and additions of all layers for real tokens, 10⁹ (nothing taken off for the
    trimmed layer)."""
    d = config["hidden_size"]
    f = config["intermediate_size"]
    h = config["num_attention_heads"]
    dh = config.get("head_dim") or d // h
    kv = config.get("num_key_value_heads") or h
    linear = d * dh * (2 * h + 2 * kv) + (2 if family == "bert" else 3) * d * f
    length = n_tokens.astype(float)
    pairs = float((length**2).sum()) * (0.5 if family in ("llama", "qwen3") else 1.0)
    if family == "modernbert":  # two of three layers see 129 tokens
        pairs = pairs / 3 + 2 / 3 * float((length * np.minimum(length, 129)).sum())
    return (
        config["num_hidden_layers"]
        * (2 * float(n_tokens.sum()) * linear + 4 * h * dh * pairs)
        / 1e9
    )


def plain(step: Step, _sample: object, _device: str) -> Step:
    """Takes the place of `fastest`, to show what compiling the steps between the products gains."""
    return step


def gemm_tflops(device: str, dtype: torch.dtype, n: int) -> float:
    a = torch.randn(n, n).to(device, dtype)
    b = torch.randn(n, n).to(device, dtype)
    return 2 * n**3 / min(timed(lambda: a @ b, device) for _ in range(8)) / 1e12


def ray_recipe(
    path: Path, texts: list[str], batch: int, options: argparse.Namespace
) -> Callable[[], object] | None:
    """D: what a Ray tutorial shows: one actor, map_batches, encode."""
    try:
        import ray.data
    except ImportError:
        print("  D: left out: ray is not installed")
        return None

    class Embed:
        def __init__(self) -> None:
            from sentence_transformers import SentenceTransformer

            self.model = SentenceTransformer(
                str(path), device=options.device, model_kwargs={"dtype": options.torch_dtype}
            )

        def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"vector": self.model.encode(list(rows["text"]), batch_size=batch)}

    gpus = 1 if options.device.startswith("cuda") else 0
    data = ray.data.from_items([{"text": text} for text in texts])
    return lambda: data.map_batches(
        Embed, concurrency=1, num_gpus=gpus, batch_size=4096
    ).materialize()


def best_batch(st: Any, texts: list[str], device: str) -> int:
    """The batch size at which encode is fastest, of those that fit into memory."""
    seconds: dict[int, float] = {}
    for batch in BATCHES:
        try:
            seconds[batch] = timed(lambda b=batch: st.encode(texts, batch_size=b), device)
        except torch.OutOfMemoryError:
            break
    torch.cuda.empty_cache()
    return min(seconds, key=seconds.__getitem__, default=1)


def compare(path: Path, length: str, options: argparse.Namespace, ceiling: float) -> None:
    from sentence_transformers import SentenceTransformer

    model = read_model(path, str(path))
    dtype = options.dtype
    device = options.device
    st = SentenceTransformer(str(path), device=device, model_kwargs={"dtype": options.torch_dtype})
    texts = make_texts(length, options.tokens)
    rows = st.tokenizer(texts, truncation=True)["input_ids"]
    n_tokens = np.array([len(row) for row in rows])
    ids = np.concatenate(rows).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(n_tokens)])
    order = np.argsort([-len(text) for text in texts])
    work = gflop(model.config, n_tokens, options.family)

    batch = best_batch(st, texts[: 2 * max(BATCHES)], device)
    candidates: dict[str, Callable[[], object]] = {
        f"A encode, batch {batch}": lambda: st.encode(texts, batch_size=batch),
        "B encode from ids": lambda: encode_from_ids(st, rows, order, batch, device),
    }
    if options.compile:
        compiled = torch.compile(st.forward, dynamic=True)
        candidates["C B compiled"] = lambda: encode_from_ids(
            st, rows, order, batch, device, compiled
        )
    if options.ray and (recipe := ray_recipe(path, texts, batch, options)):
        candidates["D ray + encode"] = recipe
    padded, packed = (
        EngineOptions.of(model, engine=engine, dtype=dtype, device=device)
        for engine in ("padded", "packed")
    )
    engines = {
        "engine padded": load_engine(model, padded),
        "engine packed": load_engine(model, packed, is_tuned=True),
    }
    with mock.patch.multiple(steps, fastest=plain):
        engines["engine packed, plain steps"] = load_engine(model, packed, is_tuned=True)
    for name, engine in engines.items():
        candidates[name] = lambda engine=engine: engine.embed(ids, offsets)

    few = max(1, min(16, EXACT_TOKENS // int(n_tokens.max())))
    exact = SentenceTransformer(
        str(path), device="cpu", model_kwargs={"dtype": torch.float32}
    ).encode(texts[:few])
    vectors = {
        name: engine.embed(ids[: offsets[few]], offsets[: few + 1])
        for name, engine in engines.items()
    }
    for name, vectors_of in {
        "encode": st.encode(texts[:few]).astype(np.float32),
        **vectors,
    }.items():
        cosine = min_cosine(vectors_of, exact)
        print(f"  {name}: minimum cosine to float32 on a CPU {cosine:.6f} ({few} texts)")
    first_s = None
    for name, run in candidates.items():
        try:
            run()  # warms up
            seconds = [timed(run, device) for _ in range(options.rounds)]
            busy = busy_share(run, device)
        except Exception as error:  # noqa: BLE001 (one baseline must not take the others with it)
            first_line = str(error).partition("\n")[0]
            print(f"  {name}: left out: {type(error).__name__}: {first_line}", flush=True)
            continue
        median = statistics.median(seconds)
        first_s = first_s or median
        padding = f"{engines[name].stats.padding_share:6.1%}" if name in engines else "     -"
        print(
            f"  {name:24} {n_tokens.sum() / median:11,.0f} tok/s "
            f"({n_tokens.sum() / max(seconds):,.0f}-{n_tokens.sum() / min(seconds):,.0f})"
            f" {len(texts) / median:8,.0f} texts/s"
            f"  MFU {work / median / ceiling / 1e3:.0%}  busy {busy:>4}"
            f"  pad {padding} {first_s / median:5.2f} x A",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(MODELS), default="bert")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--lengths", help="tokens a text; default: those of the targets")
    parser.add_argument(
        "--tokens",
        type=int,
        help="real tokens a measurement (default: a second of the target's speed)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy model and few texts")
    parser.add_argument("--models", type=Path, help="a folder that keeps the model for later calls")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="candidate C"
    )
    parser.add_argument(
        "--ray", action=argparse.BooleanOptionalAction, default=True, help="candidate D"
    )
    options = parser.parse_args()
    options.tokens = options.tokens or (3_000 if options.tiny else MODELS[options.family].n_tokens)
    options.torch_dtype = getattr(torch, options.dtype)
    logging.basicConfig(format="  %(message)s")
    # which steps are compiled, and the budget that was found
    logging.getLogger("pipeline").setLevel(logging.INFO)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name()
    ceiling = gemm_tflops(options.device, options.torch_dtype, 512 if options.tiny else 8192)
    print(
        f"{name}, torch {torch.__version__}, {options.dtype}, "
        f"GEMM ceiling {ceiling:.1f} TFLOP/s (random data)"
    )
    with model_folder(options.models) as folder:
        path = make_model(folder, options.family, options.tiny)
        for length in (options.lengths or MODELS[options.family].lengths).split(","):
            print(f"{options.family}, {length} tokens a text")
            compare(path, length, options, ceiling)


if __name__ == "__main__":
    main()
