"""Plots of the laboratory: figures to be saved as PNG and SVG, or to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by all eyes; grey for their yellow, which is pale on white.
COLOURS = "#0072b2 #e69f00 #009e73 #d55e00 #cc79a7 #56b4e9 #000000 #999999".split()
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.hashsalt": "vllm-lab",  # the same figure is the same file
    "svg.fonttype": "none",
}
SIZE = (6.4, 3.6)  # inches
Line = Sequence[tuple[float, float]]


def _figure() -> tuple[Figure, Axes]:
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        return figure, figure.subplots()


def _plain(name: str) -> str:
    """A name as it is: a dollar sign would begin a formula, an underscore hide the line."""
    return name.replace("$", r"\$").lstrip("_") or "?"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def cdfs(lines: Mapping[str, Line], meaning: str, linear: float | None = None) -> Figure:
    """Cumulative distributions: steps of (value, share of all that are not above).

    linear: where the logarithmic axis begins; None: it is linear throughout.
    """
    figure, axes = _figure()
    for number, (name, points) in enumerate(lines.items()):
        if points:
            values, shares = zip(*points, strict=True)
            axes.step(
                [values[0], *values],
                [0.0, *shares],
                where="post",
                color=_colour(number),
                label=_plain(name),
            )
    if linear is not None:
        axes.set_xscale("symlog", linthresh=linear)
    axes.set_xlabel(meaning)
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return figure


def capacities(
    lines: Mapping[str, Line],
    ceiling: float,
    title: str,
    *,
    gib_per_block: float | None = None,
    what: str = "hit rate",
) -> Figure:
    """Hit rates over capacities in blocks, and how high no cache can come."""
    figure, axes = _figure()
    for number, (name, points) in enumerate(lines.items()):
        few = len(points) < 12
        sizes, rates = zip(*points, strict=True)
        axes.plot(
            sizes, rates, color=_colour(number), marker="o" if few else "", ms=3, label=_plain(name)
        )
    axes.axhline(ceiling, color="#777", ls="--", lw=1, label="ceiling")
    axes.set_xscale("log")
    axes.set_ylim(0, None)
    axes.set_xlabel("capacity in blocks")
    axes.set_ylabel(what)
    if title:
        axes.set_title(_plain(title), loc="left")
    if gib_per_block:
        # As wide as the axis below it, in GiB.
        upper = axes.twiny()
        upper.set_xscale("log")
        upper.set_xlim(*(edge * gib_per_block for edge in axes.get_xlim()))
        upper.set_xlabel("GiB")
        upper.grid(visible=False)
        upper.spines["top"].set_visible(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def curves(lines: Mapping[str, Line], x: str, y: str) -> Figure:
    """Lines through points, whatever they are of."""
    figure, axes = _figure()
    for number, (name, points) in enumerate(lines.items()):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=_colour(number), marker="o", ms=3, label=_plain(name))
    axes.set_xlabel(_plain(x))
    axes.set_ylabel(_plain(y))
    axes.set_ylim(0, None)
    _legend(axes)
    return figure


def bars(values: Mapping[str, float], ceiling: float, best: float, title: str) -> Figure:
    """Hit rates by policy, and the room above them: to the optimum, and to the ceiling."""
    figure, axes = _figure()
    names = list(values)
    shown = [_plain(n) for n in names]
    axes.barh(shown, [values[n] for n in names], height=0.6, color=COLOURS[0])
    axes.axvline(best, color=COLOURS[3], lw=1.5, label="optimum at this capacity")
    axes.axvline(ceiling, color="#777", ls="--", lw=1, label="ceiling")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("hit rate")
    axes.set_title(_plain(title), loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
    return figure


def stacked(shares: Mapping[str, Sequence[float]], columns: Sequence[str], title: str) -> Figure:
    """Shares that sum up to one, a bar a column."""
    figure, axes = _figure()
    bottom = np.zeros(len(columns))
    for number, (name, values) in enumerate(shares.items()):
        axes.bar(columns, values, bottom=bottom, color=_colour(number), label=_plain(name))
        bottom += np.asarray(values)
    axes.set_ylabel("share of prompt tokens")
    axes.grid(visible=False, axis="x")
    axes.set_title(_plain(title), loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def heat(
    rates: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """A hit rate a cell: rows block sizes, columns capacities."""
    figure, axes = _figure()
    highest = max((rate for row in rates for rate in row), default=0.0) or 1.0
    axes.imshow(rates, aspect="auto", cmap="viridis", vmin=0, vmax=highest)
    for y, row in enumerate(rates):
        for x, rate in enumerate(row):
            colour = "black" if rate > 0.6 * highest else "white"
            axes.text(x, y, f"{rate:.2f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    axes.set_xlabel("capacity in tokens")
    axes.set_ylabel("tokens a block")
    axes.set_title(_plain(title), loc="left")
    return figure


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def save(figure: Figure, stem: Path) -> None:
    """`stem`.png and `stem`.svg."""
    with rc_context(STYLE):
        figure.savefig(stem.with_name(stem.name + ".png"), dpi=150)
        figure.savefig(stem.with_name(stem.name + ".svg"), metadata={"Date": None})


def inline(figure: Figure) -> str:
    """The figure as an <svg> element."""
    with rc_context(STYLE):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
