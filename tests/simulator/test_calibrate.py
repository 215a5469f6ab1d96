"""Fitting models of latency: to steps whose law is known, and to the demo model's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vllm import EngineArgs
from vllm.entrypoints.cli.main import main
from vllm.simulator.calibrate import (
    Clients,
    Measured,
    fit_linear,
    fit_table,
    flag,
    replay,
    requests,
    run_errors,
    step_errors,
    table_file,
)
from vllm.simulator.latency import Linear, Step, Table, parse, read_table
from vllm.simulator.run import Simulation

LAW = Linear(step=0.003, prefill=2e-4, sequence=5e-4, kv=1e-7)


def steps(seed: int, noise: float, law: Linear = LAW, count: int = 600) -> list[Measured]:
    """Of an engine that obeys `law`, but for noise, and one step in 50 that takes ten times."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prefill = draw.choice([0, 0, round(4 ** (draw.random() * 4.5))])
        step = Step(prefill, draw.randrange(1, 17), round(10 ** (1 + 3 * draw.random())), 0)
        odd = 10 if noise and draw.random() < 0.02 else 1
        made.append(Measured(step, law(step) * (1 + noise * draw.uniform(-1, 1)) * odd))
    return made


def test_the_law_is_found() -> None:
    found = fit_linear(steps(1, 0.0))
    for name in ("step", "prefill", "sequence", "kv"):
        assert getattr(found, name) == pytest.approx(getattr(LAW, name), rel=1e-6), name
    config = EngineArgs(simulator="random").create_engine_config()
    told = parse(flag(found), config.model)
    assert told(Step(5, 3, 100, 0)) == pytest.approx(found(Step(5, 3, 100, 0)), rel=1e-4)


def test_odd_steps_do_not_bend_it_and_count_in_the_sum() -> None:
    measured = steps(2, 0.2)
    found = fit_linear(measured)
    ratio = found.step / LAW.step
    assert 1.0 < ratio < 1.5, "raised, for one step in 50 takes ten times"
    for name in ("prefill", "sequence", "kv"):
        assert getattr(found, name) / getattr(LAW, name) == pytest.approx(ratio, rel=0.15), name
    assert step_errors(found, measured)["total_error"] == pytest.approx(0.0, abs=1e-9)


def test_no_weight_is_below_0() -> None:
    """KVs that seem to make steps faster are given no weight, not a negative one."""
    draw = random.Random(3)
    made = []
    for _ in range(100):
        step = Step(0, draw.randrange(1, 9), draw.randrange(100, 1000), 0)
        made.append(Measured(step, 0.01 + 1e-3 * step.sequences - 1e-6 * step.kv_tokens))
    assert fit_linear(made).kv == 0.0


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit_linear(steps(1, 0.0, count=5))


def test_a_table_learns_what_is_not_linear(tmp_path: Path) -> None:
    """Steps that stop growing: the line is wrong there, the table is not."""
    draw = random.Random(4)

    def cap(count: int) -> list[Measured]:
        made = []
        for _ in range(count):
            step = Step(0, draw.randrange(1, 65), 500, 0)
            made.append(Measured(step, 0.01 + 1e-3 * min(step.sequences, 24)))
        return made

    linear = fit_linear(cap(500))
    table = fit_table(cap(500), linear)
    held_out = cap(200)
    assert step_errors(table, held_out)["step_error"] < 0.04
    assert step_errors(linear, held_out)["step_error"] > 0.08
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_file(table)))
    read = read_table(path)
    assert isinstance(read, Table)
    assert read(held_out[0].step) == pytest.approx(table(held_out[0].step))


def test_errors_of_a_run_are_those_of_its_means() -> None:
    """An engine that is twice as slow in every step is twice as slow in all."""
    asks = requests(20, 200, 1000, seed=1)
    assert asks == requests(20, 200, 1000, seed=1)
    assert all(a.prompt and len(a.prompt) + a.max_tokens <= 200 for a in asks)
    runs = []
    for step in (0.01, 0.02):
        args = EngineArgs(
            simulator="random",
            simulator_clock="virtual",
            simulator_latency=f"constant:step={step}",
            num_gpu_blocks_override=100,
            max_model_len=200,
        )
        runs.append(replay(Simulation(args.create_engine_config()), asks, 3))
    assert len(runs[0]) == 20
    for error in run_errors(*runs).values():
        assert error == pytest.approx(1.0)
    assert set(run_errors(runs[0], runs[0]).values()) == {0.0}
    assert max(len(Clients(asks, n).first()) for n in (1, 3, 50)) == 20


def test_it_runs_the_real_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    words = ["--requests", "8", "--clients", "1,3", "--table", str(table), "--max-model-len", "128"]
    assert main(["lab", "calibrate", *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["clients"]) for row in rows] == [
        ("linear", 1),
        ("linear", 3),
        ("table", 1),
        ("table", 3),
    ]
    assert all(row["step_error"] >= 0 and row["duration_error"] > -1 for row in rows)
    assert all(row["steps"] > 10 for row in rows)
    args = EngineArgs(
        simulator="random",
        simulator_clock="virtual",
        simulator_latency=f"table:{table}",
        num_gpu_blocks_override=100,
    )
    [done] = replay(Simulation(args.create_engine_config()), requests(1, 100, 100, 0), 1)
    assert 0 < done.ttft < 5
    with pytest.raises(SystemExit):
        main(["lab", "calibrate", "--max-model-len", "8"])
    assert "max_model_len" in capsys.readouterr().err
