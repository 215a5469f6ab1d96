"""`vllm bench sweep plot`: one figure of a sweep against another, a point a setting."""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="Of one sweep, with its summary.json.")
    add("--var-x", default="request_throughput", metavar="NAME", help="Of the summary's columns.")
    add("--var-y", default="p99_ttft_ms", metavar="NAME")
    add("--curve-by", nargs="+", default=[], metavar="NAME", help="A line for each value of these.")
    add("--fig-name", default="plot", metavar="NAME", help="NAME.png and NAME.svg in FOLDER.")


def plot(args: argparse.Namespace) -> None:
    """Raises ValueError for columns that are not there, or not numbers."""
    from vllm.prefixlab.plots import curves, save

    summary = args.folder / "summary.json"
    rows = json.loads(summary.read_text(encoding="utf-8"))["runs"]
    found = lines([row for row in rows if "failed_with" not in row], args)
    if not found:
        raise ValueError(f"{summary}: no run succeeded")
    save(curves(found, args.var_x, args.var_y), args.folder / args.fig_name)
    print(f"{args.folder / args.fig_name}.png and .svg")


def lines(
    rows: list[dict[str, Any]], args: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """By the values of --curve-by: points in order of x, each the mean of a setting's runs."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for name in (*args.curve_by, args.var_x, args.var_y):
            if name not in row:
                raise ValueError(f"there is no {name!r} in the summary")
        curve = ", ".join(f"{name}={row[name]}" for name in args.curve_by) or args.var_y
        point = (_number(row, args.var_x), _number(row, args.var_y))
        runs[curve, row["benchmark"]].append(point)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (curve, _), points in runs.items():
        xs, ys = zip(*points, strict=True)
        found[curve].append((statistics.fmean(xs), statistics.fmean(ys)))
    return {curve: sorted(points) for curve, points in found.items()}


def _number(row: dict[str, Any], name: str) -> float:
    try:
        return float(row[name])
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {row[name]!r}, which is no number") from None
