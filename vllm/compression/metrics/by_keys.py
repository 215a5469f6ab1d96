"""What metrics have in common that see no query, and so take any cached prefix."""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.observed import Observed


class ByKeys:
    window: int | None = 0
    accumulates = False
    decode = False
    block: int | None = None

    def observe(self, o: Observed) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not accumulate")
