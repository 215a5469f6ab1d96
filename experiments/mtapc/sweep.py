"""Throughput and TTFT by how much larger the working set is than the device: simulated.

python -m experiments.mtapc.sweep [--device h200] [--model llama-3-8b] [--trials 3]

Each benchmark is run once on a device that holds everything, which tells its working set (distinct
blocks) and the ceiling; then on devices that hold 1/1 to 1/6 of it, with prefix caching alone and
with all of MT-APC, whose host tier holds the working set. Writes sweep.json, sweep.png, sweep.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tqdm import tqdm

from benchmarks import trial
from benchmarks.presets import PRESETS
from benchmarks.programs import PROGRAMS

BENCHMARKS = ("guessing_game", "multiturn_long", "multiturn_short", "tree_of_thought")
RATIOS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SERVERS = ("no-apc", "apc", "mt-apc")
EVERYTHING = 1 << 16  # blocks
LEAST, CONTEXT = 256, 4096  # blocks, and the tokens that they hold


def measure(name: str, server: str, blocks: int, host: int, seed: int, where: Any) -> Any:
    keywords = PRESETS[server] | {"num_gpu_blocks_override": blocks}
    if keywords["enable_multi_tier_prefix_caching"]:
        keywords["num_cpu_blocks_override"] = host
    program = PROGRAMS[name]
    engine = trial.engine_for(program, "full", keywords) | {"max_model_len": CONTEXT}
    return trial.simulated(trial.Trial(program, "full", engine, seed), *where)


def distinct(result: dict[str, Any]) -> int:
    """Blocks that were computed when nothing was evicted."""
    tokens = sum(result["input_lens"]) + sum(result["output_lens"])
    return int((tokens - result["total_cached_tokens"]) // result["cache_block_size"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="h200")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--trials", type=int, default=3)
    args = parser.parse_args()
    where, folder = (args.device, args.model), Path(__file__).parent
    found: list[dict[str, Any]] = []
    bar = tqdm(total=len(BENCHMARKS) * args.trials * (1 + len(RATIOS) * len(SERVERS)))
    for name in BENCHMARKS:
        for seed in range(args.trials):
            ceiling = measure(name, "apc", EVERYTHING, 0, seed, where)
            bar.update()
            size = distinct(ceiling)
            for ratio in RATIOS:
                for server in SERVERS:
                    blocks = max(LEAST, int(size / ratio))
                    told = measure(name, server, blocks, size, seed, where)
                    bar.update()
                    found.append(
                        {
                            "benchmark": name,
                            "seed": seed,
                            "working_set_blocks": size,
                            "ratio": ratio,
                            "server": server,
                            "req_s": told["request_throughput"],
                            "ttft_ms": told["median_ttft_ms"],
                            "hit_rate": told["total_cached_tokens"] / sum(told["input_lens"]),
                            "ceiling_req_s": ceiling["request_throughput"],
                            "ceiling_ttft_ms": ceiling["median_ttft_ms"],
                        }
                    )
    bar.close()
    said = {"simulated": list(where), "runs": found}
    (folder / "sweep.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    draw(found, folder, " on ".join(reversed(where)))


def pairs(found: list[dict[str, Any]], name: str, over: str, under: str, what: str) -> list[float]:
    """Medians of the ratios of pairs with one seed, by the ratio of sizes."""
    medians = []
    for ratio in RATIOS:
        own = [r for r in found if r["benchmark"] == name and r["ratio"] == ratio]
        by = {(r["server"], r["seed"]): r for r in own}
        seeds = {r["seed"] for r in own}
        below = f"ceiling_{what}" if under == "ceiling" else what
        server = over if under == "ceiling" else under
        each = [by[over, s][what] / by[server, s][below] for s in seeds]
        medians.append(statistics.median(each))
    return medians


def draw(found: list[dict[str, Any]], folder: Path, where: str) -> None:
    matplotlib.rcParams["svg.hashsalt"] = "sweep"
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for name in BENCHMARKS:
        axes[0].plot(RATIOS, pairs(found, name, "mt-apc", "apc", "req_s"), "o-", label=name)
        axes[1].plot(RATIOS, pairs(found, name, "mt-apc", "apc", "ttft_ms"), "o-")
        axes[2].plot(RATIOS, pairs(found, name, "mt-apc", "ceiling", "req_s"), "o-")
    titles = (
        "requests/s, mt-apc over apc",
        "median TTFT, mt-apc over apc",
        "requests/s, mt-apc over a device that holds all",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("working set / device")
        axis.axhline(1, color="#999", lw=0.8)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"SIMULATED: {where}", color="#a04000", fontsize=11)
    figure.savefig(folder / "sweep.png", dpi=100)
    figure.savefig(folder / "sweep.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
