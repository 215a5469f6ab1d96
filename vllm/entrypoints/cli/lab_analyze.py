"""`vllm lab analyze`: distributions of reuse, as tables and as plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.entrypoints.cli.command import run
from vllm.entrypoints.cli.lab_io import (
    add_semantics,
    add_trace,
    lab_parser,
    progress,
    reuse_of_source,
    show,
    table,
)

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "analyze",
        "Distributions of the share of a prompt that is reused, of hits per block and of reuse "
        "gaps: of traces, or of what an engine has measured (--trace PREFIX).",
    )
    add_trace(parser, several=True)
    add_semantics(parser)
    parser.add_argument(
        "--plots", metavar="FOLDER", type=Path, help="Draw them there too, as PNG and SVG."
    )
    return run(parser, words, _analyze)


def _analyze(args: argparse.Namespace) -> None:
    from vllm.prefixlab.reuse import LINEAR, PARTS, cdf

    rows: list[dict[str, Any]] = []
    for path in progress(args, args.trace, "analyze"):
        semantics, reuse = reuse_of_source(args, path)
        for part in PARTS:
            values = reuse.values(part)
            row = {"source": reuse.name, "semantics": semantics, "part": part}
            rows.append(row | {"count": values.size, "cdf": cdf(values)})
    if args.plots:
        from vllm.prefixlab.plots import cdfs, save

        args.plots.mkdir(parents=True, exist_ok=True)
        for part, meaning in PARTS.items():
            lines = {row["source"]: row["cdf"] for row in rows if row["part"] == part}
            save(cdfs(lines, meaning, LINEAR[part]), args.plots / f"cdf_{part}")
    if args.json:
        show(args, rows, "")
        return
    for part, meaning in PARTS.items():
        told = [
            {"source": row["source"], "semantics": row["semantics"], "count": row["count"]}
            | {f"{share:.0%}": _at(row["cdf"], share) for share in SHOWN}
            for row in rows
            if row["part"] == part
        ]
        table(told, f"{meaning.capitalize()}: so many per cent are not above")
    if args.plots:
        print(f"Plots in {args.plots}")


def _at(cdf: list[tuple[float, float]], share: float) -> float | None:
    """The least value that so large a share of all does not exceed."""
    return next((value for value, below in cdf if below >= share - 1e-12), None)
