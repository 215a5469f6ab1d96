"""`vllm bench startup`: seconds until an engine can answer, each time in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm.config import EngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags
from vllm.entrypoints.cli.bench_data import statistics, write_json
from vllm.entrypoints.cli.command import natural, positive, run

PERCENTILES = (10, 25, 50, 75, 90, 99)
PARTS = {
    "total": "Startup",
    "engine": "Engine (after imports)",
}


def main(words: Sequence[str]) -> int:
    parser = FlexibleArgumentParser(
        prog="vllm bench startup",
        description="Seconds until an engine can answer. Cold: the model's files are not in the "
        "page cache. Warm: they are.",
    )
    add = parser.add_argument
    add("--num-iters-cold", type=positive, default=3, metavar="N")
    add("--num-iters-warmup", type=natural, default=1, metavar="N", help="Not measured.")
    add("--num-iters-warm", type=positive, default=3, metavar="N")
    add("--output-json", metavar="FILE", help="Write the result there.")
    add_flags(parser, EngineArgs)
    return run(parser, words, _run)


def _run(args: argparse.Namespace) -> None:
    engine_args = EngineArgs.from_mapping(args)
    config = engine_args.create_engine_config()
    given = json.dumps(asdict(engine_args))
    cold = []
    for _ in range(args.num_iters_cold):
        _forget_pages(config.model.folder)
        cold.append(_start(given))
    for _ in range(args.num_iters_warmup):
        _start(given)
    warm = [_start(given) for _ in range(args.num_iters_warm)]
    result: dict[str, Any] = {}
    for kind, runs in (("cold", cold), ("warm", warm)):
        for part, label in PARTS.items():
            values = [one[part] for one in runs]
            found = statistics(values, PERCENTILES)
            print(f"{label}, {kind}: {found['mean']:.3f} s (median {found['median']:.3f})")
            result[f"{kind}_{part}"] = {"values": values, **found}
    if args.output_json:
        write_json(args.output_json, result)


def _forget_pages(folder: Path) -> None:
    """Have the system drop the files' pages from its cache, as far as nobody else uses them."""
    for path in folder.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _start(given: str) -> dict[str, float]:
    """Seconds of one start. Raises ValueError when the engine does not come up."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vllm.entrypoints.cli.bench_startup"],
        input=given,
        capture_output=True,
        text=True,
    )
    total = time.perf_counter() - start
    if done.returncode != 0:
        raise ValueError(f"the engine did not start: {done.stderr.strip()[-500:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {"total": total - told["end"], "engine": told["engine"]}


def _child() -> None:
    given = json.loads(sys.stdin.read())
    from vllm import LLM, SamplingParams

    start = time.perf_counter()
    llm = LLM.from_engine_args(EngineArgs(**given))
    llm.generate([[1]], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
    ready = time.perf_counter()
    llm.shutdown()
    print(json.dumps({"engine": ready - start, "end": time.perf_counter() - ready}), flush=True)
    os._exit(0)  # what the interpreter tidies up is no part of a start


if __name__ == "__main__":
    _child()
