"""What the `lab` subcommands share: traces in, tables and JSON out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vllm.config.flags import FlexibleArgumentParser
from vllm.entrypoints.cli.command import positive

T = TypeVar("T")
SEMANTICS = ("flat", "prefix", "engine")
MAX_TOLD = 20  # bad lines
PIPE_WIDTH = 160  # characters, where there is no terminal to ask


def lab_parser(name: str, what: str) -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog=f"vllm lab {name}", description=what)
    parser.add_argument("--json", action="store_true", help="JSON for programs, not tables.")
    parser.add_argument("--no-progress", action="store_true", help="No progress bars.")
    return parser


def add_trace(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument(
        "--trace",
        required=True,
        metavar="FILE",
        nargs="+" if several else None,
        help="A trace; gzip is fine. Its format is told by its first line.",
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="lab, mooncake, bailian, sessions, text, azure, burstgpt, kv-events, oracle-general, "
        "prefix-metrics.",
    )
    parser.add_argument(
        "--block-size", type=positive, metavar="TOKENS", help="Where the trace does not tell it."
    )
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="For text; without it a token is a UTF-8 byte."
    )
    parser.add_argument(
        "--fit", metavar="FILE", help="A trace with ids, whose sharing one without ids is given."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of what is drawn.")


def add_semantics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--semantics", choices=SEMANTICS, default="prefix")


def read_trace(args: argparse.Namespace, path: str) -> Any:
    """The `prefixlab.Trace`, with its bad lines told on stderr. Raises ValueError and OSError."""
    from vllm.prefixlab.formats import Options, read

    encode: Callable[[str], list[int]] | None = None
    if args.tokenizer:
        from vllm.engine.tokenizer import Tokenizer

        encode = Tokenizer(Path(args.tokenizer)).encode
    fit = read(args.fit) if args.fit else None
    options = Options(args.block_size, encode, fit, args.seed)
    with bar_of(args, f"reading {path}", unit="B", unit_scale=True) as bar:
        trace = read(path, args.format, options, None if bar.disable else bar.update)
    _tell_bad(path, ((path, bad) for bad in trace.bad), trace.bad_count)
    return trace


def reuse_of_source(args: argparse.Namespace, path: str) -> tuple[str, Any]:
    """(semantics, `prefixlab.Reuse`) of a trace, or of an engine's prefix metrics as measured."""
    from vllm.prefixlab.formats.metrics import prefix_of, reuse_of_files
    from vllm.prefixlab.reuse import reuse_of
    from vllm.prefixlab.view import view

    prefix = prefix_of(Path(path)) if args.format in (None, "prefix-metrics") else None
    if prefix is None:
        return args.semantics, reuse_of(view(read_trace(args, path), args.semantics))
    reuse, faults = reuse_of_files(prefix)
    _tell_bad(prefix, faults[:MAX_TOLD], len(faults))
    return "measured", reuse


def _tell_bad(source: object, told: Iterable[tuple[object, Any]], count: int) -> None:
    """The first bad lines of a source, each with its file, and how many there are."""
    for file, bad in told:
        print(f"{file}:{bad.line}: {bad.why}", file=sys.stderr)
    if count:
        print(f"{source}: {count} bad lines left out", file=sys.stderr)


def show(
    args: argparse.Namespace, rows: Sequence[dict[str, Any]], title: str, note: str = ""
) -> None:
    """The rows as JSON, or as a table for people."""
    if args.json:
        print(json.dumps(list(rows), indent=1))
        return
    table(rows, title, note)


def table(rows: Sequence[dict[str, Any]], title: str, note: str = "") -> None:
    """What is the same in all rows is said once, below the title."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vllm.prefixlab.rows import folded, heading, text

    names, said = folded(rows)
    drawn = Table(box=SIMPLE_HEAD)
    for name in names:
        left = any(isinstance(row.get(name), str) for row in rows)
        drawn.add_column(Text(heading(name)), justify="left" if left else "right", no_wrap=True)
    for row in rows:  # as Text: what a trace says is no markup
        drawn.add_row(*(Text(text(row.get(name))) for name in names))
    console = Console(
        highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH
    )
    for line in (title, said):
        if line:
            console.print(line, soft_wrap=True)
    console.print(drawn)
    if note:
        console.print(note + "\n", soft_wrap=True)


def progress(args: argparse.Namespace, items: Sequence[T], what: str) -> Iterable[T]:
    return bar_of(args, what, iterable=items)


def bar_of(args: argparse.Namespace, what: str, **options: Any) -> Any:
    """A tqdm bar on stderr; none where nobody would see it."""
    from tqdm import tqdm

    hidden = args.no_progress or not sys.stderr.isatty()
    return tqdm(desc=what, disable=hidden, leave=False, **options)


def share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, is {text}")
    return number


def numbers(text: str) -> list[int]:
    """`1000,3000` or `1k,3k`."""
    try:
        found = [
            int(w[:-1]) * 1000 if w.lower().endswith("k") else int(w) for w in text.split(",") if w
        ]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not numbers with commas between them: {text}") from None
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError("capacities are at least 1")
    return found


def policies(text: str) -> list[str]:
    """`lru,quota:chat=0.6,qa=0.4,fifo`: what has a sign in it belongs to the settings before it.

    So does a word behind `allow:` that is no policy's name.
    """
    from vllm.kv.evict import POLICIES

    found: list[str] = []
    for word in (w.strip() for w in text.split(",")):
        listed = found and found[-1].startswith("allow:") and word not in {*POLICIES, "optimal"}
        if found and ":" in found[-1] and ":" not in word and ("=" in word or listed):
            found[-1] += f",{word}"
        elif word:
            found.append(word)
    if not found:
        raise argparse.ArgumentTypeError("names with commas between them are needed")
    return found
