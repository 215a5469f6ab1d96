"""Models of latency against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vllm import EngineArgs
from vllm.config.geometries import GEOMETRIES, geometry
from vllm.config.model import ModelConfig
from vllm.core.plan import StepPlan
from vllm.simulator.latency import DEVICES, Roofline, Step, Weights, parse


def model_of(name: str) -> ModelConfig:
    return EngineArgs(simulator="random", simulator_model=name).create_engine_config().model


MODEL = model_of("llama-3.1-8b")


def plan(rows: list[tuple[int, int]]) -> StepPlan:
    starts, counts = np.array(rows, dtype=np.int32).T
    count = len(rows)
    return StepPlan(list(range(count)), starts, counts, counts > 0, [[]] * count, [], [])


def test_what_a_step_is() -> None:
    """Against loops over every token."""
    rows = [(5, 1), (0, 4), (3, 2), (9, 1)]
    step = Step.of(plan(rows))
    assert step.prefill_tokens == 6 and step.sequences == 2
    assert step.kv_tokens == sum(start + count for start, count in rows)
    assert step.pairs == sum(p + 1 for start, n in rows for p in range(start, start + n))


def test_constant_and_linear() -> None:
    step = Step(prefill_tokens=100, sequences=3, kv_tokens=1000, pairs=0)
    assert parse("constant:step=0.5", MODEL)(step) == 0.5
    linear = parse("linear:step=1,prefill=0.01,sequence=0.1,kv=0.001", MODEL)
    assert linear(step) == pytest.approx(1 + 1 + 0.3 + 1)


def test_roofline() -> None:
    """Decode reads the weights, a long prefill computes. Of 8.03 G parameters 0.5 are embedded."""
    ideal = "compute=1,memory=1,step=0"
    model = parse(f"roofline:device=h100,{ideal}", MODEL)
    assert isinstance(model, Roofline)
    assert model.weights == pytest.approx(8.03e9 - 128256 * 4096, rel=0.01)
    device = DEVICES["h100"]
    decode = Step(0, 1, 100, 100)
    reading = (model.weights * 2 + 100 * 131072) / device.bandwidth
    assert model(decode) == pytest.approx(reading)
    prefill = Step(8192, 0, 8192, 8192 * 8193 // 2)
    computing = (2 * model.weights * 8192 + 4 * 32 * 32 * 128 * prefill.pairs) / device.flops
    assert model(prefill) == pytest.approx(computing)
    faster = parse(f"roofline:device=H200,{ideal}", MODEL)
    assert model(decode) / faster(decode) == pytest.approx(4.8 / 3.35)
    eight = parse(f"roofline:device=h100,count=8,{ideal}", MODEL)
    assert model(decode) / eight(decode) == pytest.approx(8)
    own = parse(f"roofline:flops=989e12,bandwidth=3.35e12,{ideal}", MODEL)
    assert own(decode) == model(decode) and own(prefill) == model(prefill)


@pytest.mark.parametrize(
    ("name", "kib", "billions"),
    [
        ("Llama-3-8B", 128, 8.03),
        ("llama-3-70b", 320, 70.6),
        ("llama-3.1-405b", 504, 405.9),
        ("llama-3.2-1b", 32, 1.24),
        ("mixtral-8x7b", 128, 46.7),
        ("qwen2.5-72b", 320, 72.7),
        ("qwen3-0.6b", 112, 0.596),
        ("qwen3-4b", 144, 4.02),
        ("qwen3-8b", 144, 8.19),
        ("qwen3-32b", 256, 32.8),
        ("qwen3-30b-a3b", 96, 30.5),
        ("qwen3-235b-a22b", 188, 235.1),
        ("gpt2", 36, 0.124),
    ],
)
def test_sizes_are_the_published_ones(name: str, kib: int, billions: float) -> None:
    """KiB of KVs a token in 16 bits; parameters, to 1%."""
    hf = geometry(name)
    model = model_of(name)
    assert model.num_layers * model.num_kv_heads * model.head_dim * 4 == kib * 1024
    weights = Weights.of(hf, model)
    embedded = 0 if hf["tie_word_embeddings"] else hf["hidden_size"] * hf["vocab_size"]
    assert weights.dense + weights.experts + embedded == pytest.approx(billions * 1e9, rel=0.01)


def test_a_mixture_reads_the_experts_that_are_chosen() -> None:
    """One token passes through 3.3 of 30.5 G parameters; very many tokens read all of them."""
    mixture = parse("roofline:device=h100,compute=1,memory=1,step=0", model_of("qwen3-30b-a3b"))
    assert isinstance(mixture, Roofline)
    assert mixture.weights == pytest.approx(3.3e9 - 0.31e9, rel=0.03)
    one, many = mixture(Step(0, 1, 0, 0)), mixture(Step(0, 4096, 0, 0))
    assert one == pytest.approx(mixture.weights * 2 / 3.35e12)
    assert many == pytest.approx(
        max(30.2e9 * 2 / 3.35e12, 2 * mixture.weights * 4096 / 989e12), rel=0.01
    )


def test_every_geometry_and_device_makes_a_model() -> None:
    for name in GEOMETRIES:
        assert parse("roofline", model_of(name))(Step(0, 1, 1, 1)) > 0
    for device in DEVICES:
        assert parse(f"roofline:device={device}", MODEL)(Step(0, 1, 1, 1)) > 0


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    said = {"tokens": [1, 3], "kv_tokens": [0, 100], "seconds": [[1.0, 2.0], [3.0, 4.0]]}
    path.write_text(json.dumps(said))
    table = parse(f"table:{path}", MODEL)
    assert table(Step(0, 1, 0, 0)) == 1.0
    assert table(Step(2, 0, 50, 0)) == 2.5
    assert table(Step(6, 0, 100, 0)) == 8.0, "twice the last line"
    assert table(Step(0, 1, 200, 0)) == 4.0
    for bad in ({}, said | {"tokens": [1]}, said | {"tokens": [3, 1]}, [1]):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="table"):
            parse(f"table:{path}", MODEL)


@pytest.mark.parametrize(
    "text",
    [
        "sudden",
        "linear:step",
        "linear:speed=1",
        "constant:step=-1",
        "constant:step=nan",
        "roofline:device=abacus",
        "roofline:device=h100,flops=1e12",
        "roofline:flops=1e12",
        "roofline:flops=0,bandwidth=0",
        "roofline:count=0.5",
        "roofline:memory=0",
        "table:/nowhere",
    ],
)
def test_bad_ones_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"latency|parameters|unexpected|device|table|count|roofline"
    ):
        parse(text, MODEL)
