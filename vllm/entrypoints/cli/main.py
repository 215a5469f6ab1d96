"""The command `vllm`. A subcommand is a file of its own, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# name -> what it does; the file has the same name, with _ for -, and a `main(words) -> int`.
COMMANDS = {
    "serve": "serve a model over HTTP",
    "chat": "talk with a server",
    "complete": "let a server complete text",
    "lab": "study what a prefix cache does on a trace",
    "run-batch": "answer the requests of a file",
    "bench": "measure throughput, latency or a server",
    "kvstore": "serve and tend the shared KV store",
    "collect-env": "print what a bug report needs",
}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0] in ("-v", "--version"):
        from vllm.version import __version__

        print(__version__)
        return 0
    return dispatch("vllm", COMMANDS, words, note=" vllm -v: the version.")


def dispatch(
    program: str,
    commands: dict[str, str],
    words: Sequence[str],
    *,
    prefix: str = "",
    note: str = "",
) -> int:
    """Run the subcommand that the first word names; an error is one line and exit code 2.

    prefix: of the files' names. note: stands below the list of commands.
    """
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {program} COMMAND ...\n\ncommands:")
        for name, what in commands.items():
            print(f"  {name:<{width}}  {what}")
        print(f"\n{program} COMMAND --help tells more.{note}")
        return 0 if words else 2
    name = words[0]
    if name not in commands:
        print(
            f"{program}: error: there is no command {name!r}; choose from {', '.join(commands)}",
            file=sys.stderr,
        )
        return 2
    file = prefix + name.replace("-", "_")
    module = importlib.import_module(f"vllm.entrypoints.cli.{file}")
    try:
        code: int = module.main(list(words[1:]))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


if __name__ == "__main__":
    sys.exit(main())
