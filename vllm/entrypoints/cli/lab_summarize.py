"""`vllm lab summarize`: how much is reused, how often and how soon, in a few figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.cli.command import run
from vllm.entrypoints.cli.lab_io import (
    add_semantics,
    add_trace,
    lab_parser,
    progress,
    reuse_of_source,
    show,
)


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "summarize",
        "How much is reused, how often and how soon: of traces, as a cache that never evicts would,"
        " or as an engine has measured it (--trace PREFIX of --prefix-metrics PREFIX).",
    )
    add_trace(parser, several=True)
    add_semantics(parser)
    return run(parser, words, _summarize)


def _summarize(args: argparse.Namespace) -> None:
    import numpy as np

    from vllm.prefixlab.reuse import PARTS, summary

    rows: list[dict[str, Any]] = []
    ceilings = []
    for path in progress(args, args.trace, "summarize"):
        semantics, reuse = reuse_of_source(args, path)
        about = {"source": reuse.name, "semantics": semantics}
        rows += [about | {"part": part} | summary(reuse.values(part)) for part in PARTS]
        workloads = sorted(set(reuse.workload))
        for kind in workloads if len(workloads) > 1 else []:
            mine = np.array([workload == kind for workload in reuse.workload])
            part = {"part": "reuse_fraction", "workload": kind}
            rows.append(about | part | summary(reuse.reuse_fraction[mine]))
        ceiling = {"hit_rate": reuse.ceiling, "token_hit_rate": reuse.token_ceiling}
        rows.append(about | {"part": "ceiling"} | ceiling)
        ceilings.append(f"{reuse.name} {reuse.ceiling:.4f} of blocks, {reuse.token_ceiling:.4f}")
    if args.json:
        show(args, rows, "")
        return
    told = [row for row in rows if row["part"] != "ceiling"]
    note = "; ".join(f"{ceiling} of tokens" for ceiling in ceilings)
    kinds = " and ".join(sorted({row["semantics"] for row in rows}))
    show(args, told, f"Reuse, {kinds} semantics", f"without evictions: {note}")
