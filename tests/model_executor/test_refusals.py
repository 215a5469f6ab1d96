"""A config that asks for what is not implemented is refused by name, at construction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm import kernels
from vllm.model_executor.layers.rope import rope_table
from vllm.model_executor.models import families, resolve
from vllm.model_executor.settings import Settings

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 32,
}
OPT = LLAMA | {"architectures": ["OPTForCausalLM"], "ffn_dim": 16}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"]}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
PHI3 = LLAMA | {"architectures": ["Phi3ForCausalLM"]}
MIXTRAL = LLAMA | {"architectures": ["MixtralForCausalLM"]}
QWEN3_MOE = LLAMA | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
}
SLIDING = ["full_attention", "sliding_attention"]


def build(hf: dict[str, Any]) -> Any:
    return resolve(hf)(hf, kernels.load("cpu", "reference"), torch.float32)


@pytest.mark.parametrize("hf", [LLAMA, GPT2, OPT, MISTRAL, QWEN2, PHI3, MIXTRAL, QWEN3_MOE])
def test_what_the_refusals_start_from_is_accepted(hf: dict[str, Any]) -> None:
    build(hf)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    (LLAMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    (LLAMA, {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    (LLAMA, {"sliding_window": 8}, "sliding_window=8"),
    (LLAMA, {"layer_types": SLIDING}, "layer_types=.*sliding_attention"),
    (LLAMA, {"layer_types": ["full_attention"]}, "layer_types="),
    (LLAMA, {"layer_types": [["full_attention"], {}]}, "layer_types="),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads=3"),
    (LLAMA, {"num_attention_heads": 3}, "hidden_size=16"),
    (LLAMA, {"hidden_size": None}, "hidden_size=None"),
    (LLAMA, {"hidden_size": 10**15}, f"hidden_size={10**15}"),
    (LLAMA, {"num_hidden_layers": -1}, "num_hidden_layers=-1"),
    (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers=True"),
    (LLAMA, {"vocab_size": "32"}, "vocab_size='32'"),
    (LLAMA, {"attention_bias": "no"}, "attention_bias='no'"),
    (LLAMA, {"rms_norm_eps": 0}, "rms_norm_eps=0"),
    (LLAMA, {"rope_theta": float("inf")}, "rope_theta=inf"),
    (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    (LLAMA, {"rope_scaling": {"rope_type": ["x"]}}, "rope_type="),
    (LLAMA, {"rope_scaling": [1]}, "rope_scaling must be an object"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "factor=None"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 1e9}}, "factor=1000000000.0"),
    (LLAMA, {"rope_parameters": {"mrope_section": [1, 1]}}, "mrope_section="),
    (LLAMA, {"rope_parameters": {"full_attention": {}}}, "full_attention="),
    (
        LLAMA,
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
            }
        },
        "high_freq_factor=4.0",
    ),
    (MISTRAL, {"sliding_window": -8}, "sliding_window=-8"),
    (QWEN2, {"layer_types": SLIDING}, "layer_types="),
    (PHI3, {"attention_bias": True}, "attention_bias=True"),
    (PHI3, {"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
    (
        PHI3,
        {
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0, 1.0]},
        },
        "long_factor=.*2 positive numbers",
    ),
    (MIXTRAL, {"num_experts_per_tok": 9}, "num_experts_per_tok=9"),
    (QWEN3_MOE, {"num_experts_per_tok": 5}, "num_experts_per_tok=5"),
    (QWEN3_MOE, {"use_sliding_window": True}, "use_sliding_window=True"),
    (QWEN3_MOE, {"mlp_only_layers": 3}, "mlp_only_layers=3"),
    (GPT2, {"activation_function": "quick_gelu"}, "activation_function='quick_gelu'"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention=True"),
    (GPT2, {"quantization_config": {"bits": 4}}, "quantization_config="),
    (GPT2, {"n_head": 3}, "n_embd=16"),
    (OPT, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
    (OPT, {"num_attention_heads": 3}, "hidden_size=16"),
    (OPT, {"quantization_config": {"bits": 4}}, "quantization_config="),
]


@pytest.mark.parametrize(("base", "change", "message"), REFUSED)
def test_refused(base: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(base | change)


@pytest.mark.parametrize("names", [["GrokForCausalLM"], [], None, "LlamaForCausalLM", [["x"]]])
def test_unknown_architecture(names: Any) -> None:
    with pytest.raises(ValueError, match="not supported; known: GPT2LMHeadModel, Llama"):
        resolve({"architectures": names})


def test_families() -> None:
    assert sorted(families()) == [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "OPTForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    ]


ROPES: list[dict[str, Any]] = [
    {},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: r.get("rope_type", "default"))
def test_both_spellings_of_rope(rope: dict[str, Any]) -> None:
    """transformers 4: `rope_theta` and `rope_scaling` (or its "type"); 5: `rope_parameters`."""
    base = {"max_position_embeddings": 64, "original_max_position_embeddings": 32}
    new = base | {"rope_parameters": rope | {"rope_theta": 5e5}}
    old = base | {"rope_theta": 5e5, "rope_scaling": rope or None}
    oldest = old | {"rope_scaling": {"type" if k == "rope_type" else k: rope[k] for k in rope}}
    expected = rope_table(Settings(new), 8)
    assert not torch.equal(expected, rope_table(Settings(base), 8))
    for hf in (old, oldest):
        assert torch.equal(rope_table(Settings(hf), 8), expected)


def test_layer_types_choose_windows() -> None:
    used = {"use_sliding_window": True, "sliding_window": 8, "layer_types": SLIDING[::-1]}
    model = build(QWEN2 | used)
    assert [block.attention.window for block in model.blocks] == [8, 0]
    model = build(QWEN2 | used | {"layer_types": None, "max_window_layers": 1})
    assert [block.attention.window for block in model.blocks] == [0, 8]
    model = build(QWEN2 | {"sliding_window": 8})
    assert [block.attention.window for block in model.blocks] == [0, 0]


def test_mistral_without_the_field_has_a_window() -> None:
    assert build(MISTRAL).blocks[0].attention.window == 4096
    assert build(MISTRAL | {"sliding_window": None}).blocks[0].attention.window == 0
