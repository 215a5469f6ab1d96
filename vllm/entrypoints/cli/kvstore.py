"""`vllm kvstore serve|gc|stat|verify`: the shared KV store."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vllm.entrypoints.cli.command import one_line
from vllm.entrypoints.cli.main import dispatch

COMMANDS = {
    "serve": "the daemon that keeps KVs in shared memory",
    "gc": "delete files that nobody needs",
    "stat": "how much a folder or a daemon holds",
    "verify": "read every file and check it",
}


def main(words: Sequence[str]) -> int:
    try:
        return dispatch("vllm kvstore", COMMANDS, words, prefix="kvstore_")
    except (OSError, RuntimeError, ValueError) as error:  # the store's own and its library's
        print(f"vllm kvstore {words[0]}: error: {one_line(error)}", file=sys.stderr)
        return 2
