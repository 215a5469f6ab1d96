"""Every family against transformers, over an arena whose blocks lie in no order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from vllm.kernels import Ops
from vllm.model_executor.model import Model

from .harness import BLOCK, Case, Driver, Sequence, load, make_case

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def small(kind: type[hf.PretrainedConfig], **fields: Any) -> hf.PretrainedConfig:
    return kind(**{**SMALL, **fields})


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

GPT2 = {"vocab_size": 96, "n_embd": 48, "n_layer": 3, "n_head": 3, "n_positions": 128}
OPT = {
    "vocab_size": 96,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 48,
}

CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: small(hf.LlamaConfig),
    "llama-tied": lambda: small(hf.LlamaConfig, tie_word_embeddings=True, head_dim=32),
    "llama-mha-biases": lambda: small(
        hf.LlamaConfig, num_key_value_heads=4, attention_bias=True, mlp_bias=True
    ),
    "llama-llama3": lambda: small(hf.LlamaConfig, rope_parameters=LLAMA3),
    "llama-linear": lambda: small(
        hf.LlamaConfig, rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}
    ),
    "mistral": lambda: small(hf.MistralConfig, sliding_window=None),
    "mistral-window": lambda: small(hf.MistralConfig, sliding_window=9, head_dim=12),
    "qwen2": lambda: small(hf.Qwen2Config),
    "qwen2-window": lambda: small(
        hf.Qwen2Config,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen2-layer-types": lambda: small(
        hf.Qwen2Config,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2-yarn": lambda: small(
        hf.Qwen2Config,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen3": lambda: small(hf.Qwen3Config, head_dim=48, tie_word_embeddings=True),
    "qwen3-biases-window": lambda: small(
        hf.Qwen3Config,
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=11,
        max_window_layers=2,
    ),
    "phi3": lambda: small(hf.Phi3Config, pad_token_id=0),
    "phi3-window-partial": lambda: small(
        hf.Phi3Config,
        pad_token_id=0,
        head_dim=32,
        sliding_window=10,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
        },
    ),
    "phi3-longrope": lambda: small(
        hf.Phi3Config,
        pad_token_id=0,
        original_max_position_embeddings=8,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [1.0, 1.7, 2.9, 5.0, 7.0, 8.0, 9.0, 10.0],
            "original_max_position_embeddings": 8,
        },
    ),
    "phi3-longrope-short": lambda: small(
        hf.Phi3Config,
        pad_token_id=0,
        original_max_position_embeddings=256,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [1.0, 1.7, 2.9, 5.0, 7.0, 8.0, 9.0, 10.0],
            "original_max_position_embeddings": 256,
        },
    ),
    "mixtral": lambda: small(hf.MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "mixtral-window": lambda: small(
        hf.MixtralConfig, num_local_experts=5, num_experts_per_tok=3, sliding_window=7
    ),
    "qwen3-moe": lambda: small(
        hf.Qwen3MoeConfig,
        head_dim=32,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=False,
    ),
    "qwen3-moe-mixed": lambda: small(
        hf.Qwen3MoeConfig,
        num_hidden_layers=5,
        num_experts=6,
        num_experts_per_tok=4,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    ),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt2-by-depth": lambda: hf.GPT2Config(
        **GPT2,
        n_inner=70,
        activation_function="gelu",
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
    ),
    "opt": lambda: hf.OPTConfig(**OPT),
    "opt-norm-after": lambda: hf.OPTConfig(
        **{**OPT, "word_embed_proj_dim": 32}, do_layer_norm_before=False
    ),
    "opt-no-bias": lambda: hf.OPTConfig(
        **OPT, enable_bias=False, tie_word_embeddings=False, _remove_final_layer_norm=True
    ),
}


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """Checkpoints made so far: each serves all kernel sets."""
    return {}


@pytest.fixture(scope="module", params=CONFIGS)
def case(
    request: pytest.FixtureRequest,
    cases: dict[str, Case],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    name = request.param
    if name not in cases:
        cases[name] = make_case(tmp_path_factory.mktemp(name), CONFIGS[name]())
    return cases[name]


@pytest.fixture(scope="module")
def model(case: Case, ops: Ops) -> Model:
    return load(case, ops)


@pytest.fixture
def driver(model: Model, case: Case) -> Driver:
    return Driver(model, case.hf)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    assert theirs.std() > 0.3, "degenerate logits prove nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_logits(driver: Driver, case: Case) -> None:
    prompt = case.prompt(45)
    close(driver.prefill(prompt)[1], case.logits(prompt))


def test_greedy(driver: Driver, case: Case) -> None:
    prompt = case.prompt(21, seed=1)
    assert driver.greedy(prompt, 64) == case.greedy(prompt, 64)


@pytest.mark.parametrize("chunk", [1, 3, BLOCK, 7, 16])
def test_chunks(driver: Driver, case: Case, chunk: int) -> None:
    prompt = case.prompt(37, seed=2)
    close(driver.prefill(prompt, chunk)[1], driver.prefill(prompt)[1])


def test_mixed_batch(driver: Driver, case: Case) -> None:
    """Two decodes, a first chunk, a later chunk in one step: as each alone."""
    prompts = [case.prompt(n, seed=n) for n in (19, 8, 11, 25)]
    news = [1, 1, 11, 14]
    alone = [driver.prefill(p)[1][-n:] for p, n in zip(prompts, news, strict=True)]
    sequences = [
        driver.prefill(p[:-n])[0] if n < len(p) else Sequence()
        for p, n in zip(prompts, news, strict=True)
    ]
    work = [(s, p[-n:]) for s, p, n in zip(sequences, prompts, news, strict=True)]
    for together, one in zip(driver.step(*work), alone, strict=True):
        close(together, one)


def test_cached_prefix(driver: Driver, case: Case) -> None:
    """A sequence that starts from another's blocks computes what it would have computed itself."""
    prefix, ends = case.prompt(4 * BLOCK, seed=3), [case.prompt(9, seed=s) for s in (4, 5)]
    first, _ = driver.prefill(prefix + ends[0])
    before = driver.kv[first.blocks].clone()
    second = Sequence(first.blocks[:4], len(prefix))
    shared = driver.step((second, ends[1]))[0]
    close(shared, driver.prefill(prefix + ends[1])[1][len(prefix) :])
    assert torch.equal(driver.kv[first.blocks], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case: Case, ops: Ops, dtype: torch.dtype) -> None:
    prompt = case.prompt(30, seed=6)
    expected = case.logits(prompt)
    ours = Driver(load(case, ops, dtype), case.hf).prefill(prompt)[1]
    assert ours.dtype == torch.float32
    assert (ours - expected).abs().mean() < 0.05 * expected.std()


def test_every_weight_has_one_place(case: Case, ops: Ops) -> None:
    """The views that a checkpoint fills cover each parameter, and cover it once."""
    model = load(case, ops)
    for weight in model.parameters():
        weight.data = torch.zeros_like(weight)
    for view in model.targets().values():
        view += 1
    assert all(bool((weight == 1).all()) for weight in model.parameters())
