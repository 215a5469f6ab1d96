"""A prompt that a slow disk has: compute it, load it, or both at once?

python -m benchmarks.load_or_compute [--rounds 3] [--json results/load_or_compute.json]

TTFT of 1,024 tokens on an idle engine, at several speeds of the disk around the one at which
loading takes as long as computing; the choices in turn. The disk is slowed down by a control group
(see benchmarks.fio), which needs root.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engine import make_model
from benchmarks.fio import throttled
from benchmarks.measure import alternate, spread, write_json
from benchmarks.tiers import engine
from vllm.engine.llm_engine import LLMEngine
from vllm.sampling_params import SamplingParams

LENGTH, PROMPTS = 1024, 4
NEVER = 10**9
CHOICES = {"compute": {"min_load_tokens": NEVER}, "load": {"min_load_tokens": 0}, "both": {}}


def prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, 30000) for _ in range(LENGTH)] for _ in range(PROMPTS)]


def first_token(served: LLMEngine, prompt: list[int]) -> float:
    """Seconds, with nothing of it on the device."""
    served.reset_prefix_cache()
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    start = time.perf_counter()
    served.add_request("0", prompt, params)
    while served.has_unfinished_requests():
        served.step()
    return time.perf_counter() - start


def serve(folder: Path, disk: str, **more: Any) -> LLMEngine:
    return engine(
        folder,
        400,
        enable_multi_tier_prefix_caching=True,
        swap_space=0,
        disk_cache_dir=disk,
        **more,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "vllm-bench-llama"))
    parser.add_argument("--json", help="where to write the results")
    args = parser.parse_args()
    folder = Path(f"{args.folder}-{args.layers}")
    make_model(folder, args.layers)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as disk:
        writer = serve(folder, disk)
        for prompt in prompts():
            first_token(writer, prompt)
            while writer.core.tidy():  # to the disk
                writer.core.scheduler.kv.wait(0.01)
        speed = LENGTH / first_token(writer, prompts(1)[0])
        block_bytes = writer.core.scheduler.kv.spec.block_bytes
        writer.shutdown()
        even = int(speed * block_bytes / 16)
        print(f"{speed:.0f} tokens a second; a disk of {even / 1e6:.0f} MB/s is as fast")
        for times in (0.5, 1.0, 2.0, 4.0):
            with throttled(Path(disk), int(times * even)) as members:
                if members is None:
                    sys.exit("needs a throttled group")
                members.write_text(str(os.getpid()))
                try:
                    results[str(times)] = compare(folder, disk, args.rounds)
                finally:
                    (members.parent.parent / "cgroup.procs").write_text(str(os.getpid()))
            for name in ("compute", "load"):
                told = spread(results[str(times)][f"both_against_{name}"])
                print(f"disk {times} x: both, against {name:8} {told}")
    write_json(args.json, "load_or_compute", results)


def compare(folder: Path, disk: str, rounds: int) -> dict[str, Any]:
    engines = {name: serve(folder, disk, **more) for name, more in CHOICES.items()}
    known = {name: iter(prompts() * 8) for name in engines}
    for i, served in enumerate(engines.values()):
        for prompt in prompts(10 + i)[:2]:
            first_token(served, prompt)  # learns how fast it computes
    timed = alternate(
        "prompt",
        {
            name: (lambda served=served, name=name: first_token(served, next(known[name])))
            for name, served in engines.items()
        },
        rounds,
        warmup=2,
    )
    for served in engines.values():
        served.shutdown()
    return {
        "seconds": timed.seconds,
        "both_against_compute": timed.ratio("both", "compute"),
        "both_against_load": timed.ratio("both", "load"),
    }


if __name__ == "__main__":
    main()
