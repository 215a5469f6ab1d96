"""Time as an argument, so that the simulator can bring its own."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds, never going backwards; its zero means nothing.
Clock = Callable[[], float]

monotonic: Clock = time.monotonic
