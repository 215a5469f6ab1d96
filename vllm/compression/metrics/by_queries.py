"""What metrics have in common that judge by the last queries alone."""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.observed import Observed


class ByQueries:
    window: int | None
    accumulates = False
    decode = True
    block: int | None = None

    def observe(self, o: Observed) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not accumulate")
