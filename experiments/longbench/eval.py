"""Score what run_longbench answered: result.json, a table and plots beside the answers.

python -m experiments.longbench.eval results/longbench/llama3
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import resume
from experiments.longbench.metrics import score
from experiments.longbench.tasks import DATASETS

LENGTHS = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, sys.maxsize)}
Scores = dict[str, dict[str, dict[str, Any]]]  # dataset -> setting -> what is known of it


def parts(path: Path) -> tuple[str, str]:
    """(dataset, setting) of a file of answers. Raises ValueError when its name has neither."""
    for name in sorted(DATASETS, key=len, reverse=True):
        found = re.fullmatch(rf"({re.escape(name)}(?:_e)?)-(.+)", path.stem)
        if found:
            return found.group(1), found.group(2)
    raise ValueError(f"{path}: no dataset of LongBench is called that")


def scored(path: Path) -> dict[str, Any]:
    """Percent, over all rows and, for LongBench-E, by length; and the ratio that was kept."""
    name, _ = parts(path)
    dataset = DATASETS[name.removesuffix("_e")]
    rows = resume.read(path)
    values = [
        score(dataset.metric, r["pred"], r["answers"], r["all_classes"], dataset.first_line)
        for r in rows
    ]
    result: dict[str, Any] = {"rows": len(rows), "score": percent(values)}
    if name.endswith("_e"):
        lengths = [r["length"] for r in rows]
        result["by_length"] = {
            label: percent([v for v, n in zip(values, lengths, strict=True) if low <= n < high])
            for label, (low, high) in LENGTHS.items()
        }
    kept = [r["logical_kvs"] / max(1, r["kept_kvs"]) for r in rows if "kept_kvs" in r]
    if kept:
        result["ratio"] = round(statistics.fmean(kept), 2)
    return result


def percent(values: list[float]) -> float | None:
    return round(100 * statistics.fmean(values), 2) if values else None


def evaluate(folder: Path) -> Scores:
    """Raises ValueError when there are no answers."""
    results: Scores = {}
    for path in sorted(folder.glob("*.jsonl")):
        dataset, setting = parts(path)
        results.setdefault(dataset, {})[setting] = scored(path)
    if not results:
        raise ValueError(f"{folder} holds no answers")
    return results


def order(settings: set[str]) -> list[str]:
    """The full cache first, then less and less of it."""

    def keeps(name: str) -> tuple[float, str]:
        size = name.split("_")[0]
        if size == "full":
            return (0.0, name)
        return (float(size[:-1]), name) if size.endswith("x") else (1e6 / float(size), name)

    return sorted(settings, key=keeps)


def table(results: Scores) -> str:
    """Scores, in brackets as percent of the full cache's; at the end the mean over datasets."""
    columns = order({s for of in results.values() for s in of})
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    whole = len(DATASETS)
    for dataset, of in results.items():
        full = of.get("full", {}).get("score")
        cells = []
        for setting in columns:
            value = of.get(setting, {}).get("score")
            share = f" ({100 * value / full:.0f}%)" if value is not None and full else ""
            cells.append(
                "" if value is None else f"{value:.2f}{share if setting != 'full' else ''}"
            )
        lines.append(f"| {dataset} | " + " | ".join(cells) + " |")
    means = []
    for setting in columns:
        values = [
            v for of in results.values() if (v := of.get(setting, {}).get("score")) is not None
        ]
        missing = len(results) - len(values)
        means.append(f"{statistics.fmean(values):.2f}" + (f" ({missing} missing)" * bool(missing)))
    lines.append("| mean | " + " | ".join(means) + " |")
    counts = {of[s]["rows"] for of in results.values() for s in of}
    note = f"\n{len(results)} of {whole} datasets; {min(counts)} to {max(counts)} rows each.\n"
    return "\n".join(lines) + "\n" + note


def plot(results: Scores, folder: Path) -> None:
    """Percent of the full cache's score over the compression that was had, a panel a method."""
    methods = sorted({m for of in results.values() for s in of if (m := method(s))})
    fig, panels = plt.subplots(
        1, max(1, len(methods)), figsize=(6 * max(1, len(methods)), 5), squeeze=False, sharey=True
    )
    for axes, name in zip(panels[0], methods, strict=False):
        for dataset, of in results.items():
            full = of.get("full", {}).get("score")
            mine = [r for s, r in of.items() if method(s) == name and "ratio" in r]
            points = sorted((r["ratio"], r["score"]) for r in mine)
            if full and points:
                ratios = [1.0, *(p[0] for p in points)]
                shares = [100.0, *(100 * p[1] / full for p in points)]
                axes.plot(ratios, shares, marker=".", label=dataset)
        axes.set(xscale="log", title=name, xlabel="KVs of the full cache / KVs kept")
        axes.axhline(100, color="#999", linewidth=0.8)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("% of the full cache's score")
    if panels[0][0].get_legend_handles_labels()[0]:
        panels[0][0].legend(fontsize="small", ncols=2)
    fig.tight_layout()
    for kind in ("png", "svg"):
        fig.savefig(folder / f"longbench.{kind}", dpi=150)
    plt.close(fig)


def method(setting: str) -> str:
    """A setting without its size; empty for the full cache."""
    return setting.partition("_")[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.longbench.eval", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="RESULTS/MODEL of run_longbench")
    args = parser.parse_args()
    try:
        results = evaluate(args.folder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    (args.folder / "result.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = table(results)
    (args.folder / "table.md").write_text(text, encoding="utf-8")
    plot(results, args.folder)
    print(text)


if __name__ == "__main__":
    main()
