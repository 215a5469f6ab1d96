"""What subcommands share: errors in one line, and the numbers that flags take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from vllm.config.flags import FlexibleArgumentParser

EXTRA = ("numba", "matplotlib")  # modules of vllm[lab]


def run(
    parser: FlexibleArgumentParser,
    words: Sequence[str],
    work: Callable[[argparse.Namespace], int | None],
    *,
    faults: tuple[type[Exception], ...] = (ValueError, OSError),
) -> int:
    """Parse and work; what cannot work is one line and exit code 2."""
    args = parser.parse_args(list(words))
    try:
        return work(args) or 0
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        parser.error(f"needs {error.name}: pip install 'vllm[lab]'")
    except BrokenPipeError:
        raise
    except faults as error:
        parser.error(one_line(error))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def positive(text: str) -> int:
    return _at_least(1, text)


def natural(text: str) -> int:
    return _at_least(0, text)


def _at_least(low: int, text: str) -> int:
    number = int(text)
    if number < low:
        raise argparse.ArgumentTypeError(f"must be at least {low}, is {number}")
    return number
