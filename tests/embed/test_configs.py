"""A config.json that leaves a setting out means what transformers makes of it, or is left to the
padded engine. Oracle: transformers' own config classes, which write every setting out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from pipeline.embed.families import FAMILIES
from pipeline.embed.rotary import Rotary, Unsupported
from pipeline.embed.sizes import Sizes

pytestmark = pytest.mark.model

SMALL = {
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
    "hidden_size": 96,
    "num_attention_heads": 6,
}
"""None of them a default, and the head's width not either."""
ODD: dict[str, list[dict[str, Any]]] = {
    "bert": [{"hidden_act": "relu", "layer_norm_eps": 1e-3, "type_vocab_size": 5}],
    "mistral": [{"sliding_window": 7, "is_causal": False}, {"sliding_window": None}],
    "qwen2": [{"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}],
    "qwen3": [{"use_sliding_window": True, "sliding_window": 7, "attention_bias": True}],
    "llama": [{"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 3}],
    "gemma3_text": [{"use_bidirectional_attention": True, "sliding_window": 9}],
    "modernbert": [{"local_attention": 10, "norm_bias": True, "mlp_bias": True}],
}
SEE_BOTH = ("bert", "distilbert", "eurobert", "luke", "modernbert", "nomic_bert", "xlm-roberta")
SCALED = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.3,
}
NESTED = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "truncate": False}
CASES = [(kind, odd) for kind in FAMILIES for odd in [{}, *ODD.get(kind, [])]]


def angles_of(rotary: Rotary) -> tuple[list[float], float]:
    frequencies, factor = rotary.frequencies()
    return frequencies.tolist(), factor


def read(kind: str, config: dict[str, Any]) -> dict[str, Any] | None:
    try:
        sizes = FAMILIES[kind].read({**config, "model_type": kind})
    except (KeyError, Unsupported):
        return None
    fields = {f.name: getattr(sizes, f.name) for f in dataclasses.fields(Sizes)}
    fields["rotary"] = [angles_of(rotary) for rotary in sizes.rotary]
    # what stands for "no layer" and "none of these layers"
    fields["windowed"] = sizes.windowed if any(sizes.windowed) else ()
    fields["window"] = sizes.window if any(sizes.windowed) else None
    return fields


@pytest.mark.parametrize(("kind", "odd"), CASES, ids=str)
def test_a_setting_that_is_left_out_means_what_transformers_makes_of_it(
    kind: str, odd: dict[str, Any]
) -> None:
    kind_of_config = CONFIG_MAPPING[kind]
    whole = kind_of_config(**{**SMALL, **odd}).to_dict()
    assert read(kind, whole) is not None
    # the classes refuse other defaults of these two beside the rest
    for name in whole.keys() - {"num_hidden_layers", "hidden_size"}:
        fewer = {key: value for key, value in whole.items() if key != name}
        completed = kind_of_config.from_dict(fewer).to_dict()
        sizes = read(kind, fewer)
        assert sizes is None or sizes == read(kind, completed), name


@pytest.mark.parametrize(
    ("kind", "older"),
    [
        ("llama", {"rope_theta": 5e4}),
        ("llama", {"rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen3", {"rope_theta": 1e6, "rope_scaling": None}),
        ("modernbert", {"global_rope_theta": 9e3, "local_rope_theta": 77.0}),
        ("modernbert", {"global_attn_every_n_layers": 2}),
        ("gemma3_text", {"rope_theta": 9e3, "rope_local_base_freq": 77.0}),
        (
            "gemma3_text",
            {"sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        ("nomic_bert", {"rope_theta": 777.0}),
        ("ministral3", {"rope_theta": 777.0, "rope_scaling": SCALED}),
    ],
    ids=str,
)
def test_the_names_of_transformers_4_mean_the_same(kind: str, older: dict[str, Any]) -> None:
    kind_of_config = CONFIG_MAPPING[kind]
    whole = kind_of_config(**SMALL).to_dict()
    for name in ("rope_parameters", "layer_types"):
        whole.pop(name, None)
    config = {**whole, **older}
    assert read(kind, config) == read(kind, kind_of_config.from_dict(config).to_dict())
    assert read(kind, config) != read(kind, whole) or older.get("rope_scaling", 0) is None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"hidden_act": "mish"}),
        ("distilbert", {"sinusoidal_pos_embds": True}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"is_causal": False}),
        ("gemma3_text", {"rope_parameters": {"full_attention": NESTED}}),
        ("ministral3", {"rope_parameters": None}),
        *((kind, {"is_causal": True}) for kind in SEE_BOTH),
    ],
    ids=str,
)
def test_what_is_not_of_this_shape_is_left_to_the_padded_engine(
    kind: str, change: dict[str, Any]
) -> None:
    assert read(kind, {**CONFIG_MAPPING[kind](**SMALL).to_dict(), **change}) is None


def test_shapes_hold_each_name_once() -> None:
    for kind, family in FAMILIES.items():
        sizes = family.read({**CONFIG_MAPPING[kind](**SMALL).to_dict(), "model_type": kind})
        names = [name for name, _ in family._shapes(sizes)]
        assert len(names) == len(set(names))
