"""One page about one trace: what could be hit, what is hit at which size, and what is not.

The page is a single HTML file: its plots are inline SVG, and it loads nothing from anywhere.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.prefixlab import plots
from vllm.prefixlab.advise import shared_prefixes, sizes
from vllm.prefixlab.curve import knots, lru_hits
from vllm.prefixlab.geometry import Geometry
from vllm.prefixlab.misses import CAUSES, misses
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.replay import replay
from vllm.prefixlab.reuse import LINEAR, PARTS, cdf, reuse_of, summary
from vllm.prefixlab.rows import folded, heading, text
from vllm.prefixlab.trace import Trace
from vllm.prefixlab.view import Outcome, View, groups, view

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 13px } caption { text-align: left; color: #666 }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } svg { max-width: 100%; height: auto }
.wide { overflow-x: auto } footer { margin-top: 3rem; color: #666; font-size: 13px }
"""
CAPACITIES = 6  # of the policies, where none are asked for
TIMES = (1, 2, 4, 8)  # block sizes of the heat map, of the trace's own


@dataclass(frozen=True)
class Asked:
    """What the page shall be about. No capacities: some between a hundredth and all blocks."""

    semantics: str
    policies: Sequence[str]
    model: Geometry
    capacities: Sequence[int] = ()


def page(trace: Trace, asked: Asked, step: Callable[[str], object] = lambda _: None) -> str:
    """The page. `step` is told of each part as it begins."""
    seen = view(trace, asked.semantics)
    if not seen.trace.accesses:
        raise ValueError("trace: no block that could be hit")
    capacities = list(asked.capacities) or _spread(seen)
    runs: dict[tuple[str, int], Outcome] = {}
    for policy in asked.policies:
        for capacity in capacities:
            step(f"{policy} at {capacity}")
            runs[policy, capacity] = replay(seen, policy, capacity)
    parts: list[str] = []
    sections: list[tuple[str, Callable[[], str]]] = [
        ("The trace", lambda: _facts(trace, seen)),
        ("Hit rate at every capacity", lambda: _curve(seen, runs, asked.model)),
        ("How much memory", lambda: _table(sizes(seen, asked.model))),
        ("Policies", lambda: _policies(seen, runs, capacities)),
        ("Who hits", lambda: _who(seen, runs, capacities)),
        ("How reuse is distributed", lambda: _reuse(seen)),
        ("Where the tokens go", lambda: _misses(trace, capacities)),
        ("Block size and capacity", lambda: _heat(trace, capacities, asked.semantics)),
        ("Prefixes that are shared", lambda: _table(shared_prefixes(seen))),
    ]
    for name, make in sections:
        step(name)
        parts.append(f"<h2>{name}</h2>\n" + make())
    title = html.escape(f"{trace.name}: prefix reuse, {asked.semantics} semantics")
    body = "\n".join(parts)
    footer = (
        f"Semantics {asked.semantics}; {trace.block_size} tokens a block; GiB of "
        f"{html.escape(asked.model.name)}: {asked.model.kv_bytes:,} bytes of KV a token. Made by "
        "<code>vllm lab report</code>."
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{CSS}</style>\n<h1>{title}</h1>\n{body}\n<footer>{footer}</footer>\n</html>\n"
    )


def _spread(seen: View) -> list[int]:
    most = seen.trace.universe
    return sorted(
        {max(1, c) for c in np.geomspace(max(1, most // 100), most, CAPACITIES).astype(int)}
    )


def _table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    names, said = folded(rows)
    head = "".join(f"<th>{html.escape(heading(name))}" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text(row.get(name)))}" for name in names) + "\n"
        for row in rows
    )
    caption = f"<caption>{html.escape(said)}</caption>" if said else ""
    return f'<div class="wide"><table>{caption}\n<tr>{head}\n{body}</table></div>'


def _facts(trace: Trace, seen: View) -> str:
    reuse = reuse_of(seen)
    span = float(trace.arrival[-1] - trace.arrival[0])
    rows = [
        {"": "requests", "value": trace.requests},
        {"": "seconds", "value": span},
        {"": "prompt tokens", "value": int(trace.input_len.sum(dtype=np.int64))},
        {"": "output tokens", "value": int(trace.output_len.sum(dtype=np.int64))},
        {"": "block accesses", "value": seen.trace.accesses},
        {"": "distinct blocks", "value": seen.trace.universe},
        {"": "ceiling by blocks", "value": reuse.ceiling},
        {"": "ceiling by tokens", "value": reuse.token_ceiling},
        {"": "bad lines left out", "value": trace.bad_count},
    ]
    return _table(rows)


def _curve(seen: View, runs: dict[tuple[str, int], Outcome], model: Geometry) -> str:
    hits, accesses = lru_hits(seen), seen.trace.accesses
    shown = knots(hits.size - 1, 80)
    lines: dict[str, list[tuple[float, float]]] = {
        "LRU, every capacity": [(c, int(hits[c]) / accesses) for c in shown]
    }
    few = knots(hits.size - 1, 24)
    lines["optimum"] = [(c, float(replay(seen, OPTIMAL, c).hits.sum()) / accesses) for c in few]
    for (policy, capacity), outcome in runs.items():
        if policy not in ("lru", OPTIMAL):
            rate = float(outcome.hits.sum()) / accesses
            lines.setdefault(policy, []).append((capacity, rate))
    figure = plots.capacities(
        lines, int(hits[-1]) / accesses, "", gib_per_block=model.gib(1, seen.trace.block_size)
    )
    return plots.inline(figure)


def _policies(seen: View, runs: dict[tuple[str, int], Outcome], capacities: list[int]) -> str:
    middle = capacities[len(capacities) // 2]
    rates = {p: float(o.row()["hit_rate"]) for (p, c), o in runs.items() if c == middle}
    best = float(replay(seen, OPTIMAL, middle).row()["hit_rate"])
    rates.pop(OPTIMAL, None)
    ceiling = int(lru_hits(seen)[-1]) / seen.trace.accesses
    figure = plots.bars(rates, ceiling, best, f"{middle:,} blocks")
    return plots.inline(figure) + _table([outcome.row() for outcome in runs.values()])


def _who(seen: View, runs: dict[tuple[str, int], Outcome], capacities: list[int]) -> str:
    policy = next(iter(runs))[0]
    outcome = runs[policy, capacities[len(capacities) // 2]]
    rows = [
        {by: name} | outcome.row(mask)
        for by in ("workload", "turn")
        for name, mask in groups(seen.trace, by).items()
    ]
    return _table(rows)


def _reuse(seen: View) -> str:
    reuse = reuse_of(seen)
    rows = [{"of": meaning} | summary(reuse.values(part)) for part, meaning in PARTS.items()]
    drawn = (
        plots.inline(plots.cdfs({seen.trace.name: cdf(reuse.values(part))}, meaning, LINEAR[part]))
        for part, meaning in PARTS.items()
    )
    return _table(rows) + "".join(drawn)


def _misses(trace: Trace, capacities: list[int]) -> str:
    exact = view(trace, "engine")
    rows = {c: misses(replay(exact, "lru", c))[0] for c in capacities}
    shares = {cause: [rows[c][i]["share"] for c in capacities] for i, cause in enumerate(CAUSES)}
    names = [f"{c:,}" for c in capacities]
    figure = plots.stacked(shares, names, "LRU by capacity in blocks, engine semantics")
    middle = capacities[len(capacities) // 2]
    return plots.inline(figure) + _table([{"capacity": middle} | row for row in rows[middle]])


def _heat(trace: Trace, capacities: list[int], semantics: str) -> str:
    """Exact: chained ids name larger blocks too. The capacity in tokens is the same in a column."""
    tokens = [c * trace.block_size for c in capacities]
    names, rates = [], []
    for size, hits, asked in _sizes(trace, semantics):
        names.append(f"{size:,}")
        rates.append([int(hits[min(t // size, hits.size - 1)]) / asked for t in tokens])
    title = f"LRU, hit rate by blocks, {semantics} semantics"
    return plots.inline(plots.heat(rates, names, [f"{t:,}" for t in tokens], title))


def _sizes(trace: Trace, semantics: str) -> Iterator[tuple[int, Any, int]]:
    for times in TIMES:
        coarse = view(trace.coarser(times), semantics)
        if coarse.trace.accesses:
            yield coarse.trace.block_size, lru_hits(coarse), coarse.trace.accesses
