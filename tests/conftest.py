"""What all tests share."""

import logging
import os
from collections.abc import Iterator

import pytest

# One thread a process: tests run beside others on small machines, where threads that wait for each
# other at barriers cost far more than they give. Tests of threading set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command that a test calls sets the log up, to a stream that ends with the test."""
    logger = logging.getLogger("vllm")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
