"""`vllm kvstore serve|gc|stat|verify`: the shared KV store."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vllm.entrypoints.cli.main import dispatch

COMMANDS = {
    "serve": "the daemon that keeps KVs in shared memory",
    "gc": "delete files that nobody needs",
    "stat": "how much a folder or a daemon holds",
    "verify": "read every file and check it",
}


def main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print("usage: vllm kvstore COMMAND ...\n\ncommands:")
        for name, what in COMMANDS.items():
            print(f"  {name:<10}  {what}")
        return 0 if words else 2
    try:
        return dispatch("vllm kvstore", COMMANDS, words, prefix="kvstore_")
    except (OSError, RuntimeError, ValueError) as error:  # the store's own and its library's
        print(f"vllm kvstore {words[0]}: error: {error}", file=sys.stderr)
        return 2
