"""Models of latency against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vllm import EngineArgs
from vllm.core.plan import StepPlan
from vllm.simulator.latency import DEVICES, Step, parse, roofline

MODEL = EngineArgs(simulator="random", simulator_model="llama-3-8b").create_engine_config().model


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
    model = roofline(MODEL, "h100", compute=1.0, memory=1.0, step=0.0)
    assert model.weights == pytest.approx(8.03e9 - 128256 * 4096, rel=0.01)
    device = DEVICES["h100"]
    decode = Step(0, 1, 100, 100)
    reading = (model.weights * 2 + 100 * 131072) / device.bandwidth
    assert model(decode) == pytest.approx(reading)
    prefill = Step(8192, 0, 8192, 8192 * 8193 // 2)
    computing = (2 * model.weights * 8192 + 4 * 32 * 32 * 128 * prefill.pairs) / device.flops
    assert model(prefill) == pytest.approx(computing)
    faster = roofline(MODEL, "h200", compute=1.0, memory=1.0, step=0.0)
    assert model(decode) / faster(decode) == pytest.approx(4.8 / 3.35)


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
        "table:/nowhere",
    ],
)
def test_bad_ones_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"latency|parameters|unexpected|device|table"):
        parse(text, MODEL)
