"""One results.json of what benchmarks.compression wrote, and a plot: speed.png and speed.svg.

python -m experiments.compression_speed.report [NAME=FILE.json ...]

Files that are named replace their part of results.json.
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

FOLDER = Path(__file__).parent
# KV-Compress's best multipliers over an engine without it: Llama-3.1-8B, one L4 (its plots).
PUBLISHED = {1: 1.38, 2: 2.00, 4: 2.54, 8: 3.44, 16: 3.90, 32: 4.93, 64: 5.18}


def ratios(document: dict[str, Any], who: str) -> list[float]:
    """Tokens a second over those of `off`, round by round."""
    seconds = document["results"]["throughput"]["seconds_a_token"]
    return [off / own for off, own in zip(seconds["off"], seconds[who], strict=True)]


def draw(found: dict[str, Any], folder: Path) -> None:
    """A point a rate and run, with the lowest and highest of its rounds."""
    matplotlib.rcParams["svg.hashsalt"] = "speed"
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    axes.plot(
        list(PUBLISHED), list(PUBLISHED.values()), "--", color="#999", label="KV-Compress, L4"
    )
    for document in found.values():
        speeds = document["results"].get("throughput")
        if speeds is None:
            continue
        each = {int(w[:-1]): ratios(document, w) for w in speeds["seconds_a_token"] if w != "off"}
        middle = {rate: statistics.median(r) for rate, r in each.items()}
        spans = [[middle[x] - min(r) for x, r in each.items()]]
        spans += [[max(r) - middle[x] for x, r in each.items()]]
        said = document["results"]["options"]
        counts = ", ".join(f"{who}:{count}" for who, count in said["contenders"])
        label = f"{said['output']:,} tokens of output; {counts}"
        axes.errorbar(list(middle), list(middle.values()), spans, fmt="o", capsize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("compression rate")
    axes.set_ylabel("tokens/s, of those without compression")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"speed.{kind}", dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compression_speed.report",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("parts", nargs="*", metavar="NAME=FILE")
    args = parser.parse_args()
    path = FOLDER / "results.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in args.parts:
        name, _, file = part.partition("=")
        found[name] = json.loads(Path(file).read_text(encoding="utf-8"))
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, FOLDER)


if __name__ == "__main__":
    main()
