"""What the config.json of a family says about its forward, in one vocabulary.

A parsed config.json comes in; `Sizes` come out, or Unsupported or KeyError is raised. Names,
defaults and meanings are those of the config classes of transformers 5.17 to 5.23. "Window" means
three things there: a token of Mistral or Qwen sees `sliding_window` tokens up to itself, one of
ModernBERT `local_attention // 2` on each side beside itself, one of a bidirectional Gemma 3
`sliding_window // 2` likewise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.embed.rotary import Unsupported, rotary, rotary_of
from pipeline.embed.sizes import ACTIVATIONS, Sizes

__all__ = ["bert", "decoder", "distilbert", "gemma3", "modernbert", "nomic_bert"]

Config = dict[str, Any]

_DISTILBERT_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}


def bert(c: Config) -> Sizes:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT and LUKE: learned positions, a norm after each half."""
    _refuse(c, is_decoder=False, position_embedding_type="absolute")
    _check_sees_both(c)
    return _sizes(
        c,
        c.get("hidden_act", "gelu"),
        eps=c.get("layer_norm_eps", 1e-12),
        positions=c.get("max_position_embeddings", 512),
        types=c.get("type_vocab_size", 2),
        padding_id=None if c["model_type"] == "bert" else int(c.get("pad_token_id", 1)),
        biases=_biases(qkv_out=True, up_down=True),
    )


def distilbert(c: Config) -> Sizes:
    """BERT under other names, without types of tokens."""
    _refuse(c, sinusoidal_pos_embds=False)
    renamed = {name: c[own] for own, name in _DISTILBERT_NAMES.items() if own in c}
    return bert({**c, **renamed, "model_type": "bert", "type_vocab_size": 0})


def nomic_bert(c: Config) -> Sizes:
    """BERT with rotary positions and a gated MLP."""
    sizes = bert({"hidden_act": "silu", **c, "model_type": "bert"})
    head_dim = c.get("head_dim") or sizes.head_dim
    return replace(
        sizes,
        head_dim=head_dim,
        positions=0,
        biases=frozenset(),
        is_gated=True,
        rotary=(rotary(c, head_dim, 1000.0),),
    )


def decoder(c: Config) -> Sizes:
    """Llama, Mistral, Ministral 3, Qwen 2 and 3, and EuroBERT, which is no decoder."""
    kind = c["model_type"]
    is_llama = kind in ("llama", "eurobert")
    if is_llama or kind in ("qwen2", "mistral"):
        c = {"head_dim": None, **c}
    if is_llama:
        c = {"num_key_value_heads": None, **c}
    head_dim = c["head_dim"] or c["hidden_size"] // c["num_attention_heads"]
    if kind == "eurobert":
        _check_sees_both(c)
    is_causal = kind != "eurobert" and c.get("is_causal", True)
    windowed = _windowed_last(c) if kind in ("qwen2", "qwen3") else ()
    if kind in ("mistral", "ministral3"):
        windowed = (True,) * c["num_hidden_layers"]
    window = c.get("sliding_window", None if kind == "ministral3" else 4096)
    window = window if any(windowed) else None
    scaling = c.get("rope_scaling") or c.get("rope_parameters") or {}
    if kind == "ministral3" and not scaling:
        raise KeyError("rope_parameters")  # its defaults are no plain positions
    growth = scaling.get("llama_4_scaling_beta") if kind == "ministral3" else None
    return _sizes(
        c,
        c.get("hidden_act", "silu"),
        head_dim=head_dim,
        kv_heads=c["num_key_value_heads"] or c["num_attention_heads"],
        eps=c["rms_norm_eps"],
        is_rms=True,
        is_gated=True,
        is_causal=is_causal,
        biases=_biases(
            qkv=kind == "qwen2",
            qkv_out=bool(c.get("attention_bias")) and (is_llama or kind == "qwen3"),
            up_down=bool(c.get("mlp_bias")) and is_llama,
        ),
        # that of a decoder that sees both sides holds the distance itself
        window=window + 1 if window is not None and not is_causal else window,
        windowed=windowed if window is not None else (),
        rotary=(rotary(c, head_dim),),
        query_growth=(growth, scaling["original_max_position_embeddings"]) if growth else None,
    )


def gemma3(c: Config) -> Sizes:
    """Gemma 3 for text, causal or bidirectional: norms before and behind each half."""
    sees_both = bool(c.get("use_bidirectional_attention"))
    _refuse(c, attn_logit_softcapping=None, is_causal=True)
    head_dim = c.get("head_dim", 256)
    window = c.get("sliding_window", 4096)
    full = rotary_of("full_attention", c, head_dim, c.get("rope_theta", 1e6), c.get("rope_scaling"))
    local = rotary_of("sliding_attention", c, head_dim, c.get("rope_local_base_freq", 1e4), None)
    return _sizes(
        c,
        c.get("hidden_activation", "gelu_pytorch_tanh"),
        head_dim=head_dim,
        kv_heads=c["num_key_value_heads"],
        eps=c.get("rms_norm_eps", 1e-6),
        is_rms=True,
        is_gated=True,
        is_causal=not sees_both,
        biases=_biases(qkv_out=bool(c.get("attention_bias"))),
        window=window // 2 + 1 if sees_both else window,
        windowed=_windowed_but_every(c, c.get("sliding_window_pattern", 6), last=True),
        rotary=(full, local),
        word_scale=c["hidden_size"] ** 0.5,
        norm_offset=1.0,
        query_scale=(head_dim / c.get("query_pre_attn_scalar", 256)) ** 0.5,
    )


def modernbert(c: Config) -> Sizes:
    """ModernBERT: windows in most layers, with rotary positions of their own; a gated MLP."""
    _check_sees_both(c)
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    thetas = {"full_attention": ("global", 160e3), "sliding_attention": ("local", 1e4)}
    return _sizes(
        c,
        c.get("hidden_activation", "gelu"),
        eps=c.get("norm_eps", 1e-5),
        is_gated=True,
        has_norm_bias=c.get("norm_bias", False),
        biases=_biases(qkv_out=bool(c.get("attention_bias")), up_down=bool(c.get("mlp_bias"))),
        window=c.get("local_attention", 128) // 2 + 1,
        windowed=_windowed_but_every(c, c.get("global_attn_every_n_layers", 3), last=False),
        rotary=tuple(
            rotary_of(kind, c, head_dim, c.get(f"{name}_rope_theta", theta), c.get("rope_scaling"))
            for kind, (name, theta) in thetas.items()
        ),
    )


def _refuse(c: Config, **usual: Any) -> None:
    """Raises Unsupported for a setting whose value is not the usual one; empty ones are alike."""
    for name, value in usual.items():
        stated = c.get(name, value)
        if stated != value and (stated or value):
            raise Unsupported(f"{name} is {stated!r}")


def _check_sees_both(c: Config) -> None:
    """An encoder that says it is causal is so in transformers where a batch has no padding."""
    if c.get("is_causal"):
        raise Unsupported("is_causal is true, and what transformers does then depends on padding")


def _sizes(c: Config, activation: str, **others: Any) -> Sizes:
    if activation not in ACTIVATIONS:
        raise Unsupported(f"the activation {activation!r} is not one of {sorted(ACTIVATIONS)}")
    heads = c["num_attention_heads"]
    common = {"head_dim": c["hidden_size"] // heads, "kv_heads": heads}
    return Sizes(
        vocab=c["vocab_size"],
        hidden=c["hidden_size"],
        inner=c["intermediate_size"],
        layers=c["num_hidden_layers"],
        heads=heads,
        activation=activation,
        **{**common, **others},
    )


def _biases(*, qkv: bool = False, qkv_out: bool = False, up_down: bool = False) -> frozenset[str]:
    present = {"qkv": qkv or qkv_out, "out": qkv_out, "up": up_down, "down": up_down}
    return frozenset(name for name, is_present in present.items() if is_present)


def _windowed_last(c: Config) -> tuple[bool, ...]:
    """Qwen's: the layers behind the first ones, where the config switches windows on."""
    if not c.get("use_sliding_window"):
        return ()
    first = c.get("max_window_layers", 28)
    return _stated(c) or tuple(i >= first for i in range(c["num_hidden_layers"]))


def _windowed_but_every(c: Config, every: int, *, last: bool) -> tuple[bool, ...]:
    """All layers but each `every`-th one: the first of each group, or the last."""
    return _stated(c) or tuple(bool((i + last) % every) for i in range(c["num_hidden_layers"]))


def _stated(c: Config) -> tuple[bool, ...]:
    return tuple(kind == "sliding_attention" for kind in c.get("layer_types") or ())
