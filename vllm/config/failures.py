"""What shall go wrong in a simulated engine: `tier=0.1,request=0.01,stall=0.001,seconds=2`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class Failures:
    """Shares are of 1. Which ones fail follows from the seed alone."""

    tier: float = 0.0  # of a tier's reads and writes
    request: float = 0.0  # of outputs, which end with an error instead of their first token
    stream: float = 0.0  # of outputs, which end with an error instead of their second token
    stall: float = 0.0  # of steps, which take `seconds` longer
    seconds: float = 1.0
    crash: float = 0.0  # the step at which the engine dies; 0: none


def parse_failures(text: str) -> Failures:
    """Raises ValueError, naming simulator_failures, for what is unknown or out of range."""
    given = asdict(Failures())
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in given:
            known = ", ".join(field.name for field in fields(Failures))
            raise ValueError(f"simulator_failures: {name!r} is none of {known}")
        try:
            given[name] = float(value)
        except ValueError:
            raise ValueError(f"simulator_failures: {name} needs a number, not {value!r}") from None
        most = math.inf if name in ("seconds", "crash") else 1.0
        if not 0 <= given[name] <= most or math.isinf(given[name]):
            raise ValueError(f"simulator_failures: {name} cannot be {value}")
    if given["crash"] != int(given["crash"]):
        raise ValueError("simulator_failures: crash is the number of a step")
    return Failures(**given)
