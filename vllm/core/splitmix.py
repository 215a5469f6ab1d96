"""Numbers that look random and follow from a number alone: SplitMix64 (Steele et al., 2014)."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # what SplitMix64 adds from one number to the next
_MASK = 2**64 - 1


def finalized(number: int) -> int:
    """64 bits out of a number of 64 bits, one to one."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def finalized_all(numbers: np.ndarray) -> np.ndarray:
    """`finalized` of each; uint64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed


def mixed(number: int) -> int:
    """`finalized`, for numbers that are small and follow one another."""
    return finalized((number * GOLDEN) & _MASK)


def stream(name: int, first: int, count: int, below: int) -> np.ndarray:
    """`mixed(name ^ i) % below` for each i from `first` on, int32 [count]."""
    numbers = np.arange(first, first + count, dtype=np.uint64) ^ np.uint64(name)
    numbers *= np.uint64(GOLDEN)
    return (finalized_all(numbers) % np.uint64(below)).astype(np.int32)
