"""Logging as vLLM's users set it: VLLM_LOGGING_LEVEL, and VLLM_CONFIGURE_LOGGING=0 for none."""

from __future__ import annotations

import logging
import os
import sys


def configure_logging() -> None:
    """One handler on the `vllm` logger, to standard error. Calling it again changes nothing."""
    if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") == "0":
        return
    logger = logging.getLogger("vllm")
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    logger.setLevel(level if isinstance(logging.getLevelName(level), int) else "INFO")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(levelname)s %(asctime)s [%(name)s] %(message)s", "%m-%d %H:%M:%S")
    )
    logger.addHandler(handler)
    logger.propagate = False
