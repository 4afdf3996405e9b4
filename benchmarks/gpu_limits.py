"""What bounds the packed engine on this GPU: products, attention, the steps between them, and the
kernels of one bucket.

    python -m benchmarks.gpu_limits [--families bert,llama,modernbert,qwen3] [--seconds 15]
                                    [--models FOLDER]
    python -m benchmarks.gpu_limits --device cpu --tiny     smoke test without a GPU

Out, printed as it is measured: for each family the four products of a layer, each sustained for
`--seconds` (boost clocks fall after a while); attention over packed and over padded rows at 32, 100
and 512 tokens; which steps were taken compiled, and both times (the engine's log); the kernels that
take most of one bucket. It needs torch, transformers and safetensors, neither ray nor MeCab.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_models import MODELS, make_model, model_folder
from benchmarks.gpu_timing import timed
from pipeline.embed import load_engine
from pipeline.embed.attention import attention_for, pack
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import read_model

BUCKET_TOKENS = 32_768
LENGTHS = (32, 100, 512)
N_KERNELS = 15


def products(family: str, options: argparse.Namespace) -> None:
    """The four products of a layer: qkv, attention's output, into the MLP, out of it."""
    sizes = MODELS[family].tiny if options.tiny else MODELS[family].sizes
    d, f, h = (sizes[n] for n in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head_dim = sizes.get("head_dim", d // h)
    kv = sizes.get("num_key_value_heads", h)
    up = f if family == "bert" else 2 * f
    shapes = {
        "qkv": (d, (h + 2 * kv) * head_dim),
        "out": (h * head_dim, d),
        "up": (d, up),
        "down": (f, d),
    }
    for name, (n_in, n_out) in shapes.items():
        x, weight = (
            torch.randn(s, device=options.device).to(options.torch_dtype)
            for s in ((options.tokens, n_in), (n_out, n_in))
        )
        flop = 2 * options.tokens * n_in * n_out
        once_s = timed(lambda x=x, w=weight: torch.nn.functional.linear(x, w), options.device)
        n_calls = max(1, int(options.seconds / max(once_s, 1e-5)))

        def sustained(x: torch.Tensor = x, w: torch.Tensor = weight, n: int = n_calls) -> None:
            for _ in range(n):
                torch.nn.functional.linear(x, w)

        rate = flop * n_calls / timed(sustained, options.device) / 1e12
        print(
            f"  {name:5} {n_in:5} -> {n_out:5}: {rate:7.1f} TFLOP/s over {n_calls} calls",
            flush=True,
        )


def attention(family: str, options: argparse.Namespace) -> None:
    sizes = MODELS[family].tiny if options.tiny else MODELS[family].sizes
    h = sizes["num_attention_heads"]
    kv = sizes.get("num_key_value_heads", h)
    head_dim = sizes.get("head_dim", sizes["hidden_size"] // h)
    is_causal = family in ("llama", "qwen3")
    packed = attention_for(options.device)
    for length in LENGTHS:
        n_rows = max(1, options.tokens // length)
        offsets = np.arange(n_rows + 1) * length
        batch = pack(np.zeros(offsets[-1], np.int32), offsets, np.arange(n_rows), options.device)
        q, k, v = (
            torch.randn(offsets[-1], n, head_dim, device=options.device).to(options.torch_dtype)
            for n in (h, kv, kv)
        )
        rows = [x.unflatten(0, (n_rows, length)).transpose(1, 2).contiguous() for x in (q, k, v)]
        mask = torch.ones(n_rows, 1, length, length, dtype=torch.bool, device=options.device).tril()
        ways = {
            "packed": lambda q=q, k=k, v=v, b=batch: packed(q, k, v, b, is_causal, None),
            "padded, masked": lambda r=rows, m=mask: scaled_dot_product_attention(
                *r, attn_mask=m, enable_gqa=h != kv
            ),
        }
        for name, run in ways.items():
            run()
            seconds = min(timed(run, options.device) for _ in range(5))
            print(f"  {length:4} tokens, {name:15} {seconds * 1e6:9.0f} us a bucket", flush=True)


def kernels(path: Path, options: argparse.Namespace) -> None:
    """Loads the engine as embedders do, which logs its races, then profiles one bucket."""
    from torch.profiler import ProfilerActivity, profile

    model = read_model(path, str(path))
    chosen = EngineOptions.of(
        model, dtype=options.dtype, device=options.device, max_batch_tokens=options.tokens
    )
    engine = load_engine(model, chosen, is_tuned=True)
    offsets = np.arange(0, options.tokens + 1, 100)
    ids = np.random.default_rng(0).integers(5, 500, offsets[-1]).astype(np.int32)
    engine.embed(ids, offsets)
    on_gpu = options.device.startswith("cuda")
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        engine.embed(ids, offsets)

    def spent(event: object) -> float:
        return float(getattr(event, f"self_{'device' if on_gpu else 'cpu'}_time_total"))

    events = sorted(seen.key_averages(), key=spent, reverse=True)
    total = sum(map(spent, events)) or 1.0
    print(f"  {engine.name}, {engine.tuning}: {total / 1e3:.1f} ms a bucket")
    for event in events[:N_KERNELS]:
        print(f"  {spent(event) / total:6.1%} {event.count:5} x {event.key[:100]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default=",".join(MODELS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=15, help="of each product")
    parser.add_argument("--tiny", action="store_true", help="toy models and small buckets")
    parser.add_argument("--models", type=Path, help="a folder that keeps the models")
    options = parser.parse_args()
    options.torch_dtype = getattr(torch, options.dtype)
    options.tokens = 1024 if options.tiny else BUCKET_TOKENS
    logging.basicConfig(format="  %(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    for family in options.families.split(","):
        print(f"{MODELS[family].name}, {options.tokens} tokens, {options.dtype}", flush=True)
        with torch.inference_mode():
            products(family, options)
            attention(family, options)
        with model_folder(options.models) as folder:
            kernels(make_model(folder, family, options.tiny), options)


if __name__ == "__main__":
    main()
