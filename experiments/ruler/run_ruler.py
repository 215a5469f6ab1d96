"""RULER's tasks on a model, by length, metric and compression rate.

    python -m experiments.ruler.run_ruler --model vllm/demo_model --lengths 512 1024 \
        --compression-rates 1 2 4 8 --compression-metrics kvc snapkv

Answers go to RESULTS/MODEL/TASK-LENGTH-METRIC-RATEx.jsonl, and a run that was stopped goes on;
result.json, table.md and a plot come at the end. A rate of 1 is the full cache.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import asking, resume
from experiments.asking import as_chat, kept
from experiments.ruler.tasks import TASKS, Sample, make, share_found
from vllm import LLM, SamplingParams
from vllm.core.compression import BUDGET_RULES, METRICS


def make_parser() -> argparse.ArgumentParser:
    parser = asking.make_parser("ruler.run_ruler", __doc__)
    add = parser.add_argument
    add("--model", required=True, help="Folder or hub id.")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    add("--lengths", nargs="+", type=int, default=[1024, 2048], help="Tokens of the prompts.")
    add("--samples", type=int, default=20)
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=8)
    add("--compression-rates", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0])
    add("--compression-metrics", nargs="+", choices=METRICS, default=["kvc"])
    add("--compression-budget", default="global", choices=BUDGET_RULES)
    add("--protected-window-size", type=int, default=32)
    add("--continual-compression", action="store_true", help="Compress while decoding, too.")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--results", type=Path, default=Path("results/ruler"))
    return parser


@dataclass(frozen=True)
class Cell:
    task: str
    length: int
    metric: str
    rate: float

    @property
    def stem(self) -> str:
        return f"{self.task}-{self.length}-{self.metric}-{self.rate:g}x"


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    for task in args.tasks:
        for length in args.lengths:
            if 1.0 in args.compression_rates:
                yield Cell(task, length, "full", 1.0)
            for metric in args.compression_metrics:
                for rate in args.compression_rates:
                    if rate != 1.0:
                        yield Cell(task, length, metric, rate)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError."""
    if min(args.compression_rates) < 1:
        raise ValueError("--compression-rates must be at least 1")
    if args.samples < 1 or args.batch_size < 1:
        raise ValueError("--samples and --batch-size must be positive")


class Asker:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._llm = LLM(
            model=args.model,
            device=args.device,
            enable_kvc=self._compresses,
            **({"compression_budget": args.compression_budget} if self._compresses else {}),
        )
        self._tokenizer = self._llm.llm_engine.tokenizer
        self._samples: dict[tuple[str, int], list[Sample]] = {}

    @property
    def _compresses(self) -> bool:
        return any(rate != 1 for rate in self._args.compression_rates)

    def samples(self, task: str, length: int) -> list[Sample]:
        """The same for every metric and rate."""
        if (task, length) not in self._samples:
            self._samples[task, length] = self._make(task, length)
        return self._samples[task, length]

    def _make(self, task: str, length: int) -> list[Sample]:
        rng = random.Random(f"{self._args.seed}-{task}-{length}")
        return [make(task, rng, length, self._count) for _ in range(self._args.samples)]

    def _count(self, text: str) -> int:
        return len(as_chat(self._tokenizer, text))

    def ask(self, cell: Cell, first: int, end: int) -> list[dict[str, Any]]:
        """Results of these of the cell's samples."""
        samples = self.samples(cell.task, cell.length)[first:end]
        prompts = [as_chat(self._tokenizer, s.prompt) for s in samples]
        params = [self._params(cell, s) for s in samples]
        lines = []
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        for sample, output in zip(samples, outputs, strict=True):
            made = output.outputs[0]
            line = {
                "pred": made.text,
                "expected": sample.expected,
                "found": share_found(made.text, sample.expected),
                "prompt_tokens": len(output.prompt_token_ids),
            }
            lines.append(line | kept(made))
        return lines

    def _params(self, cell: Cell, sample: Sample) -> SamplingParams:
        plain = {"temperature": 0.0, "max_tokens": sample.max_tokens}
        if cell.rate == 1:
            return SamplingParams(**plain)
        return SamplingParams(
            **plain,
            max_cache_tokens=max(self._args.protected_window_size, round(cell.length / cell.rate)),
            protected_window_size=self._args.protected_window_size,
            compression_metric=cell.metric,
            compress_once=not self._args.continual_compression,
        )

    def close(self) -> None:
        self._llm.shutdown()


def run(args: argparse.Namespace) -> Path:
    """Returns the folder of the answers. Raises ValueError."""
    check(args)
    folder = args.results / Path(args.model).name
    shared = ("model", "seed", "compression_budget", "protected_window_size")
    settings = {n: getattr(args, n) for n in (*shared, "continual_compression")}
    asker = Asker(args)
    try:
        for cell in cells(args):
            path = folder / f"{cell.stem}.jsonl"
            answer = partial(asker.ask, cell)
            resume.fill(path, settings, args.samples, answer, batch=args.batch_size)
    finally:
        asker.close()
    return folder


# ---- what came of it ----------------------------------------------------------------------------


def evaluate(folder: Path) -> list[dict[str, Any]]:
    """One record a file: its cell, how many samples, percent found, ratio of KVs kept."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        task, length, rest = path.stem.split("-", 2)
        metric, _, rate = rest.rpartition("-")
        rows = resume.read(path)
        record: dict[str, Any] = {
            "task": task,
            "length": int(length),
            "metric": metric,
            "rate": float(rate.removesuffix("x")),
            "samples": len(rows),
            "found": round(100 * statistics.fmean(r["found"] for r in rows), 1) if rows else None,
        }
        kept = [r["logical_kvs"] / max(1, r["kept_kvs"]) for r in rows if "kept_kvs" in r]
        if kept:
            record["ratio"] = round(statistics.fmean(kept), 2)
        found.append(record)
    return found


def table(records: list[dict[str, Any]]) -> str:
    """Percent of the expected strings that were found; a row a task and length."""
    columns = sorted({(r["metric"] != "full", r["metric"], r["rate"]) for r in records})
    names = ["full" if not other else f"{metric} {rate:g}x" for other, metric, rate in columns]
    lines = ["| task | tokens | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    values = {(r["task"], r["length"], r["metric"], r["rate"]): r["found"] for r in records}
    for task, length in sorted({(r["task"], r["length"]) for r in records}):
        cells = [values.get((task, length, metric, rate)) for _, metric, rate in columns]
        shown = " | ".join("" if v is None else f"{v:.1f}" for v in cells)
        lines.append(f"| {task} | {length} | {shown} |")
    return "\n".join(lines) + "\n"


def plot(records: list[dict[str, Any]], folder: Path) -> None:
    """A panel a metric: percent found over the rate, a line a task, means over the lengths."""
    metrics = sorted({r["metric"] for r in records} - {"full"}) or ["full"]
    fig, panels = plt.subplots(
        1, len(metrics), figsize=(5 * len(metrics), 4.5), squeeze=False, sharey=True
    )
    for axes, metric in zip(panels[0], metrics, strict=True):
        for task in sorted({r["task"] for r in records}):
            mine = [r for r in records if r["task"] == task and r["metric"] in (metric, "full")]
            rates = sorted({r["rate"] for r in mine})
            means = [statistics.fmean(r["found"] for r in mine if r["rate"] == x) for x in rates]
            axes.plot(rates, means, marker=".", label=task)
        axes.set(xscale="log", title=metric, xlabel="compression rate")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("% found")
    panels[0][0].legend(fontsize="x-small")
    fig.tight_layout()
    for kind in ("png", "svg"):
        fig.savefig(folder / f"ruler.{kind}", dpi=150)
    plt.close(fig)


def main() -> None:
    try:
        folder = run(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    records = evaluate(folder)
    (folder / "result.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(records), encoding="utf-8")
    plot(records, folder)
    print(table(records))


if __name__ == "__main__":
    main()
