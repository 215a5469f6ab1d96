"""Tables and plots of what `run` measured: figures.json, recall.png and recall.svg.

python -m experiments.compression_quality.report [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import resume
from experiments.compression_quality.run import FOLDER, PLACES, RATES, RULES

TITLES = {"window": "question in the prompt", "after": "question after compression"}


def figures(folder: Path, kind: str, tokens: int) -> dict[str, Any]:
    """place -> rule -> trials, full, and for each metric the right answers and ratios by rate.

    Raises ValueError when nothing was measured.
    """
    found: dict[str, Any] = {}
    for place in PLACES:
        for rule in RULES:
            path = folder / f"{kind}-{tokens}-{rule}-{place}.jsonl"
            rows = resume.read(path) if path.exists() else []
            if not rows:
                continue
            metrics = list(rows[0]["right"])
            found.setdefault(place, {})[rule] = {
                "trials": len(rows),
                "full": sum(r["full"] for r in rows),
                "right": {
                    m: [sum(r["right"][m][i] for r in rows) for i in range(len(RATES))]
                    for m in metrics
                },
                "ratio": {
                    m: [
                        round(sum(r["ratio"][m][i] for r in rows) / len(rows), 2)
                        for i in range(len(RATES))
                    ]
                    for m in metrics
                },
            }
    if not found:
        raise ValueError(f"{folder} holds nothing of {kind} at {tokens} tokens")
    return found


def table(of: dict[str, Any]) -> str:
    """Percent of the trials that the full cache answers, a row a metric and rule."""
    lines = ["| rule | metric | " + " | ".join(f"{r}x" for r in RATES) + " |"]
    lines.append("|---" * (len(RATES) + 2) + "|")
    for rule, what in of.items():
        for metric, right in what["right"].items():
            cells = " | ".join(f"{100 * x / max(1, what['full']):.0f}" for x in right)
            lines.append(f"| {rule} ({what['trials']}) | {metric} | {cells} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], folder: Path) -> None:
    """A row a place of the question, a panel a rule, a line a metric."""
    rules = [r for r in RULES if any(r in of for of in found.values())]
    colors = {m: f"C{i}" for i, m in enumerate(found[next(iter(found))][rules[0]]["right"])}
    fig, panels = plt.subplots(
        len(found),
        len(rules),
        figsize=(3.4 * len(rules), 3.3 * len(found)),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for row, (place, of) in zip(panels, found.items(), strict=True):
        for axes, rule in zip(row, rules, strict=True):
            what = of.get(rule, {"right": {}, "full": 1})
            for metric, right in what["right"].items():
                shares = [100 * x / max(1, what["full"]) for x in right]
                color = colors.setdefault(metric, f"C{len(colors)}")
                style = "--" if metric in ("recency", "random") else "-"
                axes.plot(RATES, shares, style, marker=".", color=color, label=metric)
            axes.axhline(95, color="#999", linewidth=0.7)
            axes.set_xscale("log", base=2)
            axes.set_title(f"{TITLES[place]}\n{rule}", fontsize="small")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("% of the full cache's answers")
    for axes in panels[-1]:
        axes.set_xlabel("compression rate")
    lines, names = panels[0][0].get_legend_handles_labels()
    fig.legend(lines, names, loc="lower center", ncols=len(names), fontsize="small")
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    for kind in ("png", "svg"):
        fig.savefig(folder / f"recall.{kind}", dpi=120)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compression_quality.report",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--kind", default="code")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=FOLDER.parent)
    args = parser.parse_args()
    try:
        found = figures(args.results, args.kind, args.tokens)
    except ValueError as error:
        sys.exit(f"error: {error}")
    text = json.dumps({"kind": args.kind, "tokens": args.tokens, "rates": RATES, **found}, indent=1)
    (args.out / "figures.json").write_text(text + "\n", encoding="utf-8")
    plot(found, args.out)
    for place, of in found.items():
        print(f"{TITLES[place]}\n\n{table(of)}")


if __name__ == "__main__":
    main()
