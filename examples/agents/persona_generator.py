"""Write personas for `guessing_game --prompt-path`.

python -m examples.agents.persona_generator -c 1000 -o personas.json [--distribution jobs.json]

The distribution is JSON: {"job": {"nurse": 6, "baker": 3}, ...}, weights by value.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from examples.agents.personas import JOBS, Distribution, personas


def read_distribution(path: Path) -> Distribution:
    """Raises ValueError, naming what is wrong."""
    said: Any = json.loads(path.read_text(encoding="utf-8"))
    good = isinstance(said, dict) and said and all(isinstance(w, dict) for w in said.values())
    if not good:
        raise ValueError(f"{path}: must be an object of objects: trait, value, weight")
    for trait, weights in said.items():
        numbers = [w for w in weights.values() if isinstance(w, (int, float)) and w >= 0]
        finite = len(numbers) == len(weights) and math.isfinite(sum(numbers))
        if not finite or sum(numbers) <= 0:
            raise ValueError(f"{path}: the weights of {trait!r} must be numbers, some above 0")
    return {str(trait): weights for trait, weights in said.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-c", "--count", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--distribution", type=Path, help="Default: a few jobs.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        distribution = read_distribution(args.distribution) if args.distribution else JOBS
    except (OSError, ValueError) as error:
        parser.error(str(error))
    made = personas(args.count, args.seed, distribution)
    args.output.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{len(made)} personas, {sum(map(len, made)) / len(made):.0f} characters on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
