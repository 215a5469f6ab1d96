"""What a benchmark is: a program over a model, its sizes, and what its server needs."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from examples.agents.client import Model

Run = Callable[..., Awaitable[object]]
"""`async run(model, rng, **sizes)`; `data=PATH` where a real file is given."""

CONTEXT = {"full": {"max_model_len": 8192}, "small": {"max_model_len": 2048}}
"""Engine keywords by scale. A small device still has to hold one whole context."""
SMALL = {"max_model_len": 2048, "num_gpu_blocks_override": 160, "num_cpu_blocks_override": 320}


@dataclass(frozen=True)
class Program:
    """`sizes` and `engine` by scale, "full" being the original study's.

    engine: keywords over the preset's; None takes one away. data: what a real file for it is.
    """

    name: str
    what: str
    run: Run
    sizes: Mapping[str, Mapping[str, Any]]
    engine: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"full": CONTEXT["full"], "small": SMALL}
    )
    data: str | None = None

    async def __call__(self, model: Model, seed: int, scale: str, **given: Any) -> None:
        await self.run(model, random.Random(seed), **(dict(self.sizes[scale]) | given))
