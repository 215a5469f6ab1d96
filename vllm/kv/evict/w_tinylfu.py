"""W-TinyLFU (Einziger, Friedman and Manes, TOS'17): what comes must be used more than what goes.

    new --> [ window, a hundredth ] --oldest--> used more than  --yes--> [ main: SLRU ]
                                                main's oldest?  --no---> goes itself

Uses are counted for keys that are not cached too, in a sketch that halves itself now and then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from vllm.kv.evict.tracked import Tracked
from vllm.kv.lineage import Key

WINDOW, PROTECTED = 0.01, 0.8  # of all keys; of main
ROWS, MOST = 4, 15
AGEING = 10  # uses counted for each key of the cache until all counts are halved


class Sketch:
    """Count-min (Cormode and Muthukrishnan, 2005): `ROWS` rows of small counters; never too low.

    A row is as wide as the most keys asked for, rounded up to a power of two. Twice as wide, it is
    itself twice, so that what has been counted stays.
    """

    def __init__(self) -> None:
        self._rows = [bytearray(64) for _ in range(ROWS)]
        self._counted = 0

    def _places(self, key: Key) -> list[int]:
        last = len(self._rows[0]) - 1
        return [int.from_bytes(key[4 * i : 4 * i + 4], "little") & last for i in range(ROWS)]

    def add(self, key: Key, keys: int) -> None:
        while len(self._rows[0]) < 2 * keys:
            self._rows = [row + row for row in self._rows]
        for row, place in zip(self._rows, self._places(key), strict=True):
            row[place] = min(MOST, row[place] + 1)
        self._counted += 1
        if self._counted >= AGEING * max(keys, 64):
            self._counted //= 2
            self._rows = [bytearray(count >> 1 for count in row) for row in self._rows]

    def __getitem__(self, key: Key) -> int:
        return min(row[place] for row, place in zip(self._rows, self._places(key), strict=True))


class WTinyLFU(Tracked):
    def __init__(self) -> None:
        super().__init__()
        self._window: OrderedDict[Key, None] = OrderedDict()
        self._probation: OrderedDict[Key, None] = OrderedDict()
        self._protected: OrderedDict[Key, None] = OrderedDict()
        self._uses = Sketch()

    @property
    def _window_size(self) -> int:
        return max(1, int(WINDOW * self.peak))

    def _new(self, key: Key) -> None:
        self._uses.add(key, self.peak)
        self._window[key] = None
        while len(self._window) > self._window_size:  # nothing had to go for this key
            self._probation[self._window.popitem(last=False)[0]] = None

    def _hit(self, key: Key) -> None:
        self._uses.add(key, self.peak)
        if key in self._window:
            self._window.move_to_end(key)
            return
        self._probation.pop(key, None)
        self._protected[key] = None
        self._protected.move_to_end(key)
        while len(self._protected) > max(1, int(PROTECTED * (self.peak - self._window_size))):
            self._probation[self._protected.popitem(last=False)[0]] = None

    def _order(self) -> Iterator[Key]:
        """The window's oldest against main's, again and again; who wins joins main's end."""
        window, main = iter(self._window), chain(self._probation, self._protected)
        joined: list[Key] = []
        over = len(self._window) - self._window_size + 1
        new, old = next(window, None), next(main, None)
        while old is not None and new is not None and over > 0:
            over -= 1
            if self._uses[new] > self._uses[old]:
                joined.append(new)
                yield old
                old = next(main, None)
            else:
                yield new
            new = next(window, None)
        if old is not None:
            yield old
            yield from main
        yield from joined
        if new is not None:
            yield new
            yield from window

    def _gone(self, key: Key) -> None:
        if key in self._window:
            del self._window[key]
            return
        del (self._probation if key in self._probation else self._protected)[key]
        if len(self._window) >= self._window_size:
            winner = next(iter(self._window))
            if self._uses[winner] > self._uses[key]:
                del self._window[winner]
                self._probation[winner] = None
