"""Who reused which prefix: a row a request and a row a block, as JSONL.

    PREFIX_requests.jsonl  request_id, mode, total_tokens, reused_tokens, workload, reuse_fraction
    PREFIX_blocks.jsonl    block_key, depth, parent, hits, use_times, reuse_gaps, cached_hits

A block is named by its chained key, so equal tokens behind different beginnings are different
blocks, as they are for the cache. `hits` counts uses after the first, as a cache without limits
would have them; `cached_hits` counts those that this cache served. Times are seconds since the
engine's start.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from vllm.core.request import EngineRequest

logger = logging.getLogger(__name__)

MAX_REQUESTS, MAX_BLOCKS, MAX_USES = 500_000, 500_000, 4_000_000
MAX_USE_TIMES = 1000  # a block; its latest


@dataclass(slots=True)
class RequestRow:
    request_id: str
    mode: str  # single or multi
    total_tokens: int  # of the prompt
    reused_tokens: int  # of them, those whose KVs were cached, in any tier
    workload: str

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"reuse_fraction": self.reused_tokens / self.total_tokens}


@dataclass(slots=True)
class _Block:
    depth: int
    parent: bytes | None
    hits: int = 0
    cached_hits: int = 0
    use_times: list[float] = field(default_factory=list)

    def row(self, key: bytes) -> dict[str, Any]:
        return {
            "block_key": key.hex(),
            "depth": self.depth,
            "parent": None if self.parent is None else self.parent.hex(),
            "hits": self.hits,
            "use_times": self.use_times,
            "reuse_gaps": [after - before for before, after in pairwise(self.use_times)],
            "cached_hits": self.cached_hits,
        }


class PrefixMetrics:
    """Collects in memory, boundedly; `dump` writes both files anew."""

    def __init__(
        self,
        prefix: str,
        start: float,
        *,
        max_requests: int = MAX_REQUESTS,
        max_blocks: int = MAX_BLOCKS,
        max_uses: int = MAX_USES,
    ) -> None:
        """start: the engine's time zero. Raises ValueError for a prefix in no folder."""
        self._prefix = Path(prefix)
        if not self._prefix.name or not self._prefix.parent.is_dir():
            raise ValueError(f"prefix_metrics: there is no folder for {prefix!r}")
        self._start = start
        # Of requests that say nothing themselves, by the original's variables.
        self._mode = os.environ.get("PREFIX_MODE") or "single"
        self._workload = os.environ.get("PREFIX_WORKLOAD") or "unknown"
        self._requests: deque[RequestRow] = deque(maxlen=max_requests)
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()  # the longest unused first
        self._max_blocks, self._max_uses = max_blocks, max_uses
        self._uses = 0  # times that are kept, over all blocks
        self._seen_requests = self._lost_blocks = 0

    def admitted(
        self,
        request: EngineRequest,
        reused: int,
        keys: Sequence[bytes],
        found: int,
        now: float,
    ) -> RequestRow:
        """A request starts for the first time, `reused` tokens of its prompt cached.

        keys: of its prompt's full blocks, of which the first `found` were cached.
        """
        hints = request.hints
        self._seen_requests += 1
        told = RequestRow(
            request_id=request.public_id or request.request_id,
            mode=hints.mode or self._mode,
            total_tokens=len(request.prompt_token_ids),
            reused_tokens=reused,
            workload=hints.workload or self._workload,
        )
        self._requests.append(told)
        time, parent = now - self._start, None
        for depth, key in enumerate(keys):
            block = self._blocks.get(key)
            if block is None:
                block = self._blocks[key] = _Block(depth, parent)
            else:
                self._blocks.move_to_end(key)
                block.hits += 1
            block.cached_hits += depth < found
            block.use_times.append(time)
            if len(block.use_times) > MAX_USE_TIMES:
                del block.use_times[0]
            else:
                self._uses += 1
            parent = key
        while len(self._blocks) > self._max_blocks or self._uses > self._max_uses:
            _, lost = self._blocks.popitem(last=False)
            self._uses -= len(lost.use_times)
            self._lost_blocks += 1
        return told

    def saved(self, told: RequestRow, keys: Sequence[bytes], block_size: int) -> None:
        """These blocks of a request that had started came from a tier before it computed them."""
        told.reused_tokens += len(keys) * block_size
        for key in keys:
            if key in self._blocks:
                self._blocks[key].cached_hits += 1

    def dump(self) -> dict[str, int]:
        """Write what is known by now. How many rows there are, and how many had no room."""
        counts = {
            "requests": self._write("requests", (row.row() for row in self._requests)),
            "blocks": self._write("blocks", (b.row(key) for key, b in self._blocks.items())),
            "lost_requests": self._seen_requests - len(self._requests),
            "lost_blocks": self._lost_blocks,
        }
        if counts["lost_requests"] or counts["lost_blocks"]:
            logger.warning("Prefix metrics: no room for %s", counts)
        return counts

    def _write(self, what: str, rows: Iterator[dict[str, Any]]) -> int:
        """Aside, then renamed: a reader sees the old file or the new one."""
        target = self._prefix.with_name(f"{self._prefix.name}_{what}.jsonl")
        handle, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        count = 0
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row) + "\n")
                    count += 1
            os.replace(aside, target)
        except BaseException:
            os.unlink(aside)
            raise
        return count

    def check(self) -> None:
        assert len(self._blocks) <= self._max_blocks and self._uses <= self._max_uses
        assert self._uses == sum(len(block.use_times) for block in self._blocks.values())
        for key, block in self._blocks.items():
            times = block.use_times
            assert times == sorted(times) and len(times) == min(block.hits + 1, MAX_USE_TIMES)
            assert len(key) == 32 and block.cached_hits <= block.hits + (self._lost_blocks > 0)
            assert (block.parent is None) == (block.depth == 0)
