"""Load or recompute? Whichever is measured to be faster, learnt while running."""

from __future__ import annotations

import math

SMOOTHING = 0.2
BOTH_SAVES = 0.2


class LoadCost:
    """Compares a tier's measured bandwidth with the measured speed of prefill.

    `min_tokens` overrides the comparison: runs of at least so many tokens are loaded, shorter ones
    are computed. Without it, and while either speed is unknown, everything is loaded: that is how
    the speeds become known.
    """

    def __init__(self, block_bytes: int, block_size: int, min_tokens: int | None = None) -> None:
        self.block_size = block_size
        self._bytes_per_token = block_bytes / block_size
        self._min_tokens = min_tokens
        self._prefilled = (0.0, 0.0)  # tokens, seconds; smoothed alike, so long steps count more
        self.chose_load = 0
        self.chose_compute = 0
        self.chose_both = 0

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step computed so many prompt tokens and nothing else to speak of."""
        if tokens > 0 and seconds > 0:
            old = 1 - SMOOTHING
            self._prefilled = old * self._prefilled[0] + tokens, old * self._prefilled[1] + seconds

    @property
    def prefill_rate(self) -> float:
        """Tokens a second; 0: not measured yet."""
        tokens, seconds = self._prefilled
        return tokens / seconds if seconds else 0.0

    def load_seconds(self, tokens: int, bandwidth: float) -> float:
        return tokens * self._bytes_per_token / bandwidth

    def worth_loading(
        self, tokens: int, bandwidth: float, *, queued: int = 0, within: float = math.inf
    ) -> bool:
        """Whether to load `tokens` tokens from a tier of so many bytes a second (0: unknown).

        queued: bytes that are loaded before them. within: seconds, after which they are given up.
        """
        if self._min_tokens is not None:
            return tokens >= self._min_tokens
        if bandwidth == 0 or self.prefill_rate == 0:
            return True
        seconds = self.load_seconds(tokens, bandwidth) + queued / bandwidth
        return seconds < min(within, tokens / self.prefill_rate)

    def front(
        self, tokens: int, bandwidth: float, *, queued: int = 0, within: float = math.inf
    ) -> int:
        """How many of them to compute while the rest is loaded, in whole blocks.

        So many that both take equally long; 0 where that saves less than `BOTH_SAVES` of the time
        that the faster of the two takes alone.
        """
        if self._min_tokens is not None or bandwidth == 0 or self.prefill_rate == 0:
            return 0
        wait = queued / bandwidth
        compute, load = 1 / self.prefill_rate, self._bytes_per_token / bandwidth  # seconds a token
        both = (wait + tokens * load) / (compute + load)
        front = int(both // self.block_size) * self.block_size
        rest = wait + (tokens - front) * load
        alone = min(tokens * compute, wait + tokens * load)
        worth = max(front * compute, rest) <= (1 - BOTH_SAVES) * alone
        return front if worth and front < tokens and rest < within else 0

    def chose(self, *, load: bool, both: bool = False) -> None:
        """A request was admitted with this choice."""
        self.chose_both += both
        self.chose_load += load and not both
        self.chose_compute += not (load or both)
