"""Load or recompute? Whichever is measured to be faster, learnt while running."""

from __future__ import annotations

import math

SMOOTHING = 0.2


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
        self.prefill_rate = 0.0  # tokens a second, smoothed; 0: not measured yet
        self.chose_load = 0
        self.chose_compute = 0

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step computed so many prompt tokens and nothing else to speak of."""
        if tokens > 0 and seconds > 0:
            rate = tokens / seconds
            known = self.prefill_rate
            self.prefill_rate = rate if known == 0 else known + SMOOTHING * (rate - known)

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

    def chose(self, load: bool) -> None:
        """A request was admitted with this choice."""
        self.chose_load += load
        self.chose_compute += not load
