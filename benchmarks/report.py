"""Draw what `benchmarks.runner` measured: a plot a benchmark, and one page with all of them.

python -m benchmarks.report results/mine [--base apc]

Writes RESULT_DIR/plots/*.png and *.svg, and RESULT_DIR/report.html, which needs nothing beside it.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

MEASURES = {
    "duration": "job completion time, s",
    "request_throughput": "requests/s",
    "output_throughput": "output tokens/s",
    "median_ttft_ms": "median TTFT, ms",
}
TIERS = {"device": "#4878a8", "host": "#e49444", "disk": "#6a9f58", "shared": "#a87cb5"}
COLUMNS = {
    "duration": "s",
    "request_throughput": "req/s",
    "output_throughput": "out tok/s",
    "mean_ttft_ms": "mean TTFT ms",
    "median_ttft_ms": "median",
    "p99_ttft_ms": "p99",
    "median_tpot_ms": "TPOT ms",
    "median_itl_ms": "ITL ms",
    "p99_e2el_ms": "p99 E2E ms",
    "device_prefix_cache_hit_rate": "device %",
    "host_prefix_cache_hit_rate": "host %",
    "disk_prefix_cache_hit_rate": "disk %",
    "num_preemptions": "preempted",
}
Trials = dict[str, list[dict[str, Any]]]  # by server

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fbfaf7; margin: 2em auto;
       max-width: 70em; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.simulated { background: #fff3cd; padding: .3em .7em; border-radius: 4px }
svg { max-width: 100%; height: auto }
"""


def read(folder: Path) -> dict[str, Trials]:
    """Results by benchmark and server. Raises ValueError when there are none."""
    found: dict[str, Trials] = {}
    for path in sorted((folder / "raw").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        servers = found.setdefault(result["benchmark"], {})
        servers.setdefault(result["server"], []).append(result)
    if not found:
        raise ValueError(f"{folder}/raw holds no results")
    order = list(json.loads((folder / "run.json").read_text(encoding="utf-8"))["servers"])
    return {name: {s: t[s] for s in order if s in t} for name, t in found.items()}


def mean(trials: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(t[name] for t in trials)


def spread(trials: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.stdev(t[name] for t in trials) if len(trials) > 1 else 0.0


def label(server: str, trials: Sequence[dict[str, Any]]) -> str:
    """A star for those that keep a part of the KVs, and may answer otherwise."""
    return f"{server}*" if trials[0]["compressed"] else server


def plot(name: str, servers: Trials) -> Figure:
    """Bars for the four measures, with standard deviations, and hit rates by tier."""
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.6), layout="constrained")
    labels = [label(server, trials) for server, trials in servers.items()]
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=False):
        heights = [mean(t, measure) for t in servers.values()]
        errors = [spread(t, measure) for t in servers.values()]
        axis.bar(labels, heights, yerr=errors, capsize=3, color="#7d9bb5")
        axis.set_title(title, fontsize=10)
    _stack(axes[4], servers)
    for axis in axes:
        axis.tick_params(axis="x", labelrotation=60, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    trials = next(iter(servers.values()))
    simulated = trials[0]["simulated"]
    title = f"{name}, {len(trials)} trial{'s' if len(trials) > 1 else ''} a server"
    if simulated:
        title += f" (SIMULATED: {simulated[1]} on {simulated[0]})"
    figure.suptitle(title, fontsize=11, color="#a04000" if simulated else "black")
    return figure


def _stack(axis: Axes, servers: Trials) -> None:
    below = [0.0] * len(servers)
    for tier, color in TIERS.items():
        rates = [mean(t, f"{tier}_prefix_cache_hit_rate") for t in servers.values()]
        if any(rates):
            axis.bar(
                [label(s, t) for s, t in servers.items()],
                rates,
                bottom=below,
                color=color,
                label=tier,
            )
            below = [a + b for a, b in zip(below, rates, strict=True)]
    axis.set_title("hit rate by tier, % of tokens", fontsize=10)
    axis.set_ylim(0, 100)
    if any(below):
        axis.legend(fontsize=8)


def summary(results: dict[str, Trials], base: str) -> tuple[list[str], list[list[str]]]:
    """Throughput and median TTFT of every server, as ratios to the base server's."""
    servers = list(dict.fromkeys(s for trials in results.values() for s in trials))
    head = ["benchmark", *(s for s in servers if s != base)]
    rows = []
    for name, trials in results.items():
        if base not in trials:
            continue
        row = [name]
        for server in head[1:]:
            if server not in trials:
                row.append("")
                continue
            faster = _ratio(trials, server, base, "request_throughput")
            sooner = _ratio(trials, server, base, "median_ttft_ms")
            row.append(f"{faster:.2f} / {sooner:.2f}")
        rows.append(row)
    return head, rows


def _ratio(trials: Trials, server: str, base: str, measure: str) -> float:
    """Median over trials that both have: pairs of one trial saw one machine and one seed."""
    pairs = {t["trial"]: t[measure] for t in trials[base]}
    ratios = [t[measure] / pairs[t["trial"]] for t in trials[server] if pairs.get(t["trial"])]
    return statistics.median(ratios) if ratios else float("nan")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(r, "td") for r in rows) + "</table>"


def numbers(servers: Trials) -> str:
    columns = [c for c in COLUMNS if any(mean(t, c) for t in servers.values())]
    rows = [
        [
            label(server, t),
            *(f"{mean(t, c):.4g}" for c in columns),
            str(sum(r["failed"] for r in t)),
        ]
        for server, t in servers.items()
    ]
    return table(["server", *(COLUMNS[c] for c in columns), "failed"], rows)


def page(
    results: dict[str, Trials],
    base: str,
    drawn: Callable[[str], str],
) -> str:
    first = next(iter(next(iter(results.values())).values()))[0]
    parts = [
        "<!doctype html><meta charset='utf-8'><title>Benchmarks of the KV cache</title>",
        f"<style>{STYLE}</style><h1>Benchmarks of the KV cache</h1>",
    ]
    if first["simulated"]:
        device, model = first["simulated"]
        parts.append(
            f"<p class='simulated'><b>Simulated.</b> The real scheduler and cache manager with the "
            f"sizes of {html.escape(model)} and modelled times of {html.escape(device)}: no model "
            "ran, and no server.</p>"
        )
    parts.append(
        f"<p>Scale: {first['scale']}. All outputs are as long as asked for. Ratios: medians over "
        f"trials: throughput / median TTFT of <b>{html.escape(base)}</b>. A star: keeps a part of "
        "the KVs, so its answers may differ.</p>"
    )
    parts.append(table(*summary(results, base)))
    for name, servers in results.items():
        parts.append(f"<h2>{html.escape(name)}</h2>{drawn(name)}{numbers(servers)}")
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("result_dir", type=Path)
    parser.add_argument("--base", help="The server to compare with; default: apc, else the first.")
    args = parser.parse_args()
    try:
        results = read(args.result_dir)
    except (OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    servers = list(dict.fromkeys(s for trials in results.values() for s in trials))
    base = args.base or ("apc" if "apc" in servers else servers[0])
    if base not in servers:
        parser.error(f"--base: {base!r} is none of {', '.join(servers)}")
    folder = args.result_dir / "plots"
    folder.mkdir(exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures give the same file
    pictures = {}
    for name, trials in tqdm(results.items(), unit="plot"):
        figure = plot(name, trials)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
        pictures[name] = text.getvalue()
        (folder / f"{name}.svg").write_text(pictures[name], encoding="utf-8")

    def inline(name: str) -> str:
        return pictures[name][pictures[name].index("<svg") :]

    target = args.result_dir / "report.html"
    target.write_text(page(results, base, inline), encoding="utf-8")
    print(f"Written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
