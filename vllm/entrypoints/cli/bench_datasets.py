"""What the benchmarks ask: prompts and how long their answers shall be, by vLLM's dataset names."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.config.flags import FlexibleArgumentParser
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.cli.bench_data import random_prompts, usable_ids
from vllm.entrypoints.cli.command import natural, positive

# As in vLLM: conversations outside of these are left out of sharegpt.
SHORTEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048
MAX_LINE = 8 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    prompt: str | list[int]
    output_len: int


def add_flags(parser: FlexibleArgumentParser) -> None:
    """The datasets' flags; `--input-len` and `--output-len` are the caller's."""
    add = parser.add_argument
    add("--dataset-name", choices=tuple(DATASETS), default="random")
    add("--dataset-path", metavar="FILE", help="Of sharegpt (JSON) and custom (JSONL).")
    add("--random-input-len", type=positive, metavar="N")
    add("--random-output-len", type=positive, metavar="N")
    add("--random-prefix-len", type=natural, default=0, metavar="N", help="Tokens that all share.")
    add("--random-range-ratio", type=float, default=0.0, metavar="R", help="Lengths vary by ±R.")
    add("--sharegpt-output-len", type=positive, metavar="N", help="Default: the answer's own.")
    add("--prefix-repetition-prefix-len", type=positive, default=256, metavar="N")
    add("--prefix-repetition-suffix-len", type=positive, default=256, metavar="N")
    add("--prefix-repetition-num-prefixes", type=positive, default=10, metavar="N")
    add("--prefix-repetition-output-len", type=positive, default=128, metavar="N")
    add(
        "--custom-output-len",
        type=_length_or_own,
        default=256,
        metavar="N",
        help="-1: each line's output_tokens.",
    )
    add("--custom-skip-chat-template", action="store_true", help="Prompts as they are.")
    add("--disable-shuffle", action="store_true", help="Keep the file's order.")
    add("--no-oversample", action="store_true", help="Do not repeat a file that is too short.")


def samples(args: argparse.Namespace, tokenizer: Tokenizer, count: int) -> list[Sample]:
    """So many of the dataset. Raises ValueError, naming the flag or the line, and OSError."""
    if not 0 <= args.random_range_ratio < 1:
        raise ValueError("--random-range-ratio must be at least 0 and below 1")
    return DATASETS[args.dataset_name](args, tokenizer, count)


def _random(args: argparse.Namespace, tokenizer: Tokenizer, count: int) -> list[Sample]:
    rng = random.Random(args.seed + 1)
    asked = args.random_output_len or args.output_len or 128
    low, high = (max(1, round(asked * (1 + r * args.random_range_ratio))) for r in (-1, 1))
    prompts = random_prompts(
        usable_ids(tokenizer),
        count=count,
        input_len=args.random_input_len or args.input_len or 1024,
        prefix_len=args.random_prefix_len,
        range_ratio=args.random_range_ratio,
        seed=args.seed,
    )
    return [Sample(prompt, rng.randint(low, high)) for prompt in prompts]


def _prefix_repetition(args: argparse.Namespace, tokenizer: Tokenizer, count: int) -> list[Sample]:
    """Each of a few prefixes with as many suffixes as any other, give or take one; shuffled."""
    rng, ids = random.Random(args.seed), usable_ids(tokenizer)
    prefixes = [
        rng.choices(ids, k=args.prefix_repetition_prefix_len)
        for _ in range(args.prefix_repetition_num_prefixes)
    ]
    length = args.output_len or args.prefix_repetition_output_len
    made = [
        Sample(
            prefixes[i % len(prefixes)] + rng.choices(ids, k=args.prefix_repetition_suffix_len),
            length,
        )
        for i in range(count)
    ]
    if not args.disable_shuffle:
        rng.shuffle(made)
    return made


def _sharegpt(args: argparse.Namespace, tokenizer: Tokenizer, count: int) -> list[Sample]:
    """The first question of each conversation, and as long an answer as it got there."""
    path = _path(args)
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--dataset-path {path}: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"--dataset-path {path}: must be a list of conversations")
    fixed = args.sharegpt_output_len or args.output_len

    def found(order: Sequence[int]) -> Iterator[Sample]:
        for i in order:
            texts = _first_turns(entries[i])
            if texts is None:
                continue
            asked = len(tokenizer.encode(texts[0]))
            length = fixed or len(tokenizer.encode(texts[1]))
            if min(asked, length) < SHORTEST or asked > LONGEST_PROMPT or asked + length > LONGEST:
                continue
            yield Sample(texts[0], length)

    return _taken(args, len(entries), found, count)


def _first_turns(entry: Any) -> tuple[str, str] | None:
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
    if not all(isinstance(text, str) for text in texts):
        return None
    return texts[0], texts[1]


def _custom(args: argparse.Namespace, tokenizer: Tokenizer, count: int) -> list[Sample]:
    """JSONL with `prompt`, and `output_tokens` where --custom-output-len is -1."""
    path = _path(args)
    lines: list[Sample] = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            if line.strip():
                lines.append(_custom_line(line, f"{path}, line {number}", args))
    plain = args.custom_skip_chat_template or getattr(args, "backend", "") == "openai-chat"

    def found(order: Sequence[int]) -> Iterator[Sample]:
        for i in order:
            sample = lines[i]
            if plain or tokenizer.chat_template is None:
                yield sample
                continue
            chat = [{"role": "user", "content": str(sample.prompt)}]
            text = tokenizer.render_chat(chat, add_generation_prompt=True)
            yield Sample(tokenizer.encode(text, add_special_tokens=False), sample.output_len)

    return _taken(args, len(lines), found, count)


def _custom_line(line: bytes, where: str, args: argparse.Namespace) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"{where}: prompt must be text")
    length = args.output_len or args.custom_output_len
    if length == -1:
        length = entry.get("output_tokens")
        if type(length) is not int or length < 1:
            raise ValueError(f"{where}: output_tokens must be at least 1")
    return Sample(prompt, length)


def _taken(
    args: argparse.Namespace,
    size: int,
    found: Callable[[Sequence[int]], Iterator[Sample]],
    count: int,
) -> list[Sample]:
    """So many samples of a file with `size` entries; repeated when it has fewer."""
    rng = random.Random(args.seed)
    order = list(range(size))
    if not args.disable_shuffle:
        rng.shuffle(order)
    taken: list[Sample] = []
    for sample in found(order):
        taken.append(sample)
        if len(taken) == count:
            return taken
    if not taken:
        raise ValueError(f"--dataset-path {args.dataset_path}: nothing in it can be asked")
    if not args.no_oversample:
        taken += [taken[i % len(taken)] for i in range(count - len(taken))]
    return taken


def _path(args: argparse.Namespace) -> Path:
    if args.dataset_path is None:
        raise ValueError(f"--dataset-name {args.dataset_name} needs --dataset-path")
    return Path(args.dataset_path)


def _length_or_own(text: str) -> int:
    return -1 if text == "-1" else positive(text)


DATASETS: dict[str, Callable[[argparse.Namespace, Tokenizer, int], list[Sample]]] = {
    "random": _random,
    "sharegpt": _sharegpt,
    "prefix_repetition": _prefix_repetition,
    "custom": _custom,
}
