"""`vllm lab calibrate`: a model of latency from a real run, and how wrong it is."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.config import EngineArgs
from vllm.config.flags import add_flags
from vllm.entrypoints.cli.command import positive, run
from vllm.entrypoints.cli.lab_io import lab_parser, numbers, progress, show

SET_HERE = tuple(f for f in EngineArgs.__dataclass_fields__ if f.startswith("simulator"))


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "calibrate",
        "Runs the real engine, fits the simulator's linear and table models to its steps, and "
        "tells their errors on requests that they were not fitted to.",
    )
    parser.add_argument(
        "--requests",
        type=positive,
        default=60,
        metavar="N",
        help="To fit; and half as many to test.",
    )
    parser.add_argument(
        "--clients", type=numbers, default=[1, 4, 16], metavar="N,...", help="Requests at a time."
    )
    parser.add_argument("--table", metavar="FILE", help="Write the table there.")
    add_flags(parser, EngineArgs, skip=SET_HERE)
    return run(parser, words, _calibrate)


def _calibrate(args: argparse.Namespace) -> None:
    from vllm.entrypoints.executor import make_executor
    from vllm.simulator import calibrate
    from vllm.simulator.run import Ask, Simulation

    given = EngineArgs.from_mapping(args)
    engine = calibrate.Real(given.create_engine_config(), make_executor)
    capacity = engine.capacity

    def asks(count: int, seed: int) -> list[Ask]:
        return calibrate.requests(count, capacity.max_model_len, engine.vocab_size, seed)

    engine.run(asks(4, given.seed + 2), 4)  # threads, caches and kernels warm up
    fitting = []
    tested = []
    for clients in progress(args, args.clients, "measuring"):
        fitting += engine.run(asks(args.requests, given.seed), clients)[1]
        own = asks(max(1, args.requests // 2), given.seed + 1)
        tested.append((clients, own, *engine.run(own, clients)))
    linear = calibrate.fit_linear(fitting)
    table = calibrate.fit_table(fitting, linear)
    engine.shutdown()

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.table or Path(folder) / "table.json")
        path.write_text(json.dumps(calibrate.table_file(table)) + "\n", encoding="utf-8")
        for name, text, latency in (
            ("linear", calibrate.flag(linear), linear),
            ("table", f"table:{path}", table),
        ):
            simulated = replace(
                given,
                simulator="random",
                simulator_clock="virtual",
                simulator_latency=text,
                num_gpu_blocks_override=capacity.num_blocks,
            )
            for clients, own, real, steps in tested:
                done = calibrate.replay(Simulation(simulated.create_engine_config()), own, clients)
                row = {"model": name, "clients": clients, "steps": len(steps)}
                row |= calibrate.step_errors(latency, steps) | calibrate.run_errors(real, done)
                lasts = name == "linear" or args.table is not None
                rows.append(row | {"simulator_latency": text if lasts else None})
    if args.json:
        show(args, rows, "")
        return
    flags = [rows[0]["simulator_latency"]] + ([f"table:{args.table}"] if args.table else [])
    shown = [{k: v for k, v in row.items() if k != "simulator_latency"} for row in rows]
    show(args, shown, "predicted / measured - 1, on requests that were not fitted to")
    for text in flags:
        print(f"--simulator-latency {text}")
