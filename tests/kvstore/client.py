"""A client of the daemon as a process: commands come on stdin, answers go to stdout, as JSON lines.

What is stored for a token depends on all tokens up to it, so whatever is found can be told right
from wrong here: `wrong` counts tokens that are not as they should be.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np

from vllm.kvstore import HostsConfig, KVCache, SharedMemoryCacheConfig
from vllm.kvstore.views import Match

LAYERS, NBYTES = 2, 512


def contents(tokens: list[int]) -> np.ndarray:
    """[tokens, layers, 2, NBYTES] uint8."""
    rows, sha = [], hashlib.sha256()
    for token in tokens:
        sha.update(token.to_bytes(4, "little"))
        rows.append(np.frombuffer(sha.digest() * (LAYERS * 2 * NBYTES // 32), np.uint8))
    return np.stack(rows).reshape(len(tokens), LAYERS, 2, NBYTES)


def wrong(match: Match, tokens: list[int], prefix: int) -> int:
    expected = contents(tokens)[prefix:]
    return sum(
        not np.array_equal(match.numpy(i, np.uint8, [NBYTES]), expected[i])
        for i in range(match.count)
    )


def main() -> None:
    hosts = HostsConfig(sys.argv[3], sys.argv[4], timeout=0.5) if len(sys.argv) > 3 else None
    config = SharedMemoryCacheConfig(sys.argv[1], block_size=4, hosts=hosts)
    cache = KVCache(config, NBYTES, int(sys.argv[2]), LAYERS)
    held: list[tuple[Match, list[int]]] = []
    print("{}", flush=True)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        tokens, prefix = command.get("tokens", []), command.get("prefix", 0)
        answer: dict[str, int] = {}
        if command["do"] == "update":
            data = contents(tokens)[prefix:]
            answer["count"] = cache.update(tokens[:prefix], tokens[prefix:], data)
        elif command["do"] == "query":
            match = cache.find(tokens[prefix:], prefix=tokens[:prefix])
            answer = {"count": match.count, "wrong": wrong(match, tokens, prefix)}
            if command["hold"]:
                held.append((match, tokens))
            else:
                match.release()
        elif command["do"] == "stat":
            answer = cache.stat()
        else:
            answer["wrong"] = sum(wrong(match, tokens, 0) for match, tokens in held)
            while held:
                held.pop()[0].release()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
