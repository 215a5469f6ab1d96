"""Offline throughput: so many prompts at once, with or without compression.

    python -m benchmarks.benchmark_throughput --input-len 1000 --output-len 100 --num-prompts 64 \
        --num-gpu-blocks-override 256 --enable-kvc --compression-rate 8

Every flag of the engine is taken, and KV-Compress's of this benchmark. Prompts are random tokens, a
real text in pieces (--real-text), or conversations (--dataset, ShareGPT's JSON).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import write_json
from vllm.config import EngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags
from vllm.core.plan import StepPlan
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.sampling_params import SamplingParams

OWN_DEFAULTS = {"protected_window_size": 50, "compression_interval": 1_000_000}  # with --enable-kvc
LEAST = 128  # KVs a head that a compression rate leaves at least
DOCS = Path(__file__).parents[1] / "docs"


def make_parser() -> argparse.ArgumentParser:
    parser = FlexibleArgumentParser(
        prog="python -m benchmarks.benchmark_throughput",
        description=(__doc__ or "").partition("\n")[0],
    )
    group = parser.add_argument_group("Benchmark")
    add = group.add_argument
    add("--dataset", type=Path, help="ShareGPT's JSON: first turns, and the lengths of answers.")
    add("--real-text", nargs="?", type=Path, const=DOCS, help="A text file, or our own docs.")
    add("--input-len", type=int, help="Tokens of a prompt.")
    add("--output-len", type=int, help="Tokens of an output.")
    add("--num-prompts", type=int, default=256)
    add("--n", type=int, default=1, help="Outputs of a prompt.")
    add("--max-batch-size", type=int, help="--max-num-seqs, by its older name.")
    only = group.add_mutually_exclusive_group()
    only.add_argument("--benchmark-input-only", action="store_true", help="One token an output.")
    only.add_argument(
        "--benchmark-output-only", action="store_true", help="Steps that decode only are timed."
    )
    add("--compression-rate", type=float, help="8 keeps an eighth of each prompt's KVs.")
    add("--kvc-rate", type=float, help="--target-compression-rate: 0.125 keeps an eighth.")
    add("--kvc-interval", type=int, help="--compression-interval, by its older name.")
    add("--compress-once", action="store_true", help="Not while decoding.")
    add("--latency-breakdown", action="store_true", help="What the time went to.")
    add("--output-json", help="Where to write the figures.")
    add_flags(parser, EngineArgs)
    parser.set_defaults(**dict.fromkeys(OWN_DEFAULTS))
    return parser


def engine_args(args: argparse.Namespace) -> EngineArgs:
    """The engine's own arguments, once the older names are translated. Raises ValueError."""
    values = dict(vars(args))
    if args.max_batch_size is not None:
        values["max_num_seqs"] = args.max_batch_size
    compresses = args.enable_kvc or args.enable_kvcompress
    for name, own in OWN_DEFAULTS.items():
        if values[name] is None:
            values[name] = own if compresses else getattr(EngineArgs, name)
    if not compresses:
        for name in ("compression_rate", "kvc_rate", "kvc_interval", "compress_once"):
            if getattr(args, name):
                raise ValueError(f"--{name.replace('_', '-')} needs --enable-kvc")
        return EngineArgs.from_mapping(values)
    if args.compression_rate is not None:
        if args.compression_rate < 1:
            raise ValueError(f"--compression-rate must be at least 1, not {args.compression_rate}")
        if args.kvc_rate is not None or args.max_cache_tokens is not None:
            raise ValueError("--compression-rate, --kvc-rate and --max-cache-tokens: only one")
    if args.kvc_rate is not None:
        values["target_compression_rate"] = args.kvc_rate
    if args.kvc_interval is not None:
        values["compression_interval"] = args.kvc_interval
    return EngineArgs.from_mapping(values)


# ---- prompts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    output_len: int


def asks(args: argparse.Namespace, engine: LLMEngine) -> list[Ask]:
    """The same for the same seed. Raises ValueError."""
    for name in ("num_prompts", "n", "input_len", "output_len"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, not {value}")
    if args.dataset is not None:
        made = _conversations(args, engine)
    else:
        if args.input_len is None or args.output_len is None:
            raise ValueError("--input-len and --output-len are needed without --dataset")
        draw = _pieces(args, engine) if args.real_text is not None else _noise(args, engine)
        made = [Ask(draw(), args.output_len) for _ in range(args.num_prompts)]
    if args.benchmark_input_only:
        made = [Ask(a.prompt, 1) for a in made]
    return made


def _noise(args: argparse.Namespace, engine: LLMEngine) -> Callable[[], list[int]]:
    rng, vocab = random.Random(args.seed), engine.config.model.vocab_size
    return lambda: [rng.randrange(vocab) for _ in range(args.input_len)]


def _pieces(args: argparse.Namespace, engine: LLMEngine) -> Callable[[], list[int]]:
    path = args.real_text
    files = sorted(path.glob("*.md")) if path.is_dir() else [path]
    text = "\n".join(f.read_text(encoding="utf-8") for f in files)
    ids = _tokenizer(engine).encode(text, add_special_tokens=False)
    if len(ids) < 2:
        raise ValueError(f"--real-text: {path} holds no text")
    rng = random.Random(args.seed)

    def draw() -> list[int]:
        at = rng.randrange(len(ids))
        return [ids[(at + i) % len(ids)] for i in range(args.input_len)]

    return draw


def _conversations(args: argparse.Namespace, engine: LLMEngine) -> list[Ask]:
    encode, found = _tokenizer(engine).encode, []
    rows = json.loads(args.dataset.read_text(encoding="utf-8"))
    random.Random(args.seed).shuffle(rows)
    for row in rows:
        turns = row.get("conversations") or []
        if len(turns) < 2:
            continue
        prompt, answer = encode(turns[0]["value"]), encode(turns[1]["value"])
        prompt = prompt[: args.input_len]
        length = args.output_len or len(answer)
        if len(prompt) >= 4 and length >= 4 and len(prompt) + length <= engine.max_model_len:
            found.append(Ask(prompt, length))
        if len(found) == args.num_prompts:
            return found
    raise ValueError(f"--dataset: {args.dataset} has only {len(found)} conversations that fit")


def _tokenizer(engine: LLMEngine) -> Any:
    if engine.tokenizer is None:
        raise ValueError("texts need a tokenizer")
    return engine.tokenizer


# ---- the run ------------------------------------------------------------------------------------


@dataclass
class Clocked:
    """Seconds of an engine's steps by what they did, and how many sequences decoded at once."""

    seconds: Counter[str] = field(default_factory=Counter)
    largest_batch: int = 0
    decoded: int = 0  # tokens of steps that decode only

    def watch(self, engine: LLMEngine) -> None:
        core = engine.core
        schedule, execute = core.scheduler.schedule, core.executor.execute
        update = core.scheduler.update

        def clocked_execute(plan: StepPlan) -> Any:
            start = time.perf_counter()
            result = execute(plan)
            self.seconds[self._kind(plan)] += time.perf_counter() - start
            return result

        core.executor.execute = clocked_execute  # type: ignore[method-assign]
        core.scheduler.schedule = self._timed("schedule", schedule)  # type: ignore[method-assign]
        core.scheduler.update = self._timed("update", update)  # type: ignore[method-assign]

    def _kind(self, plan: StepPlan) -> str:
        decodes = int((plan.counts == 1).sum())
        self.largest_batch = max(self.largest_batch, decodes)
        if plan.compress:
            return "steps that compress"
        if decodes < len(plan.seqs):
            return "steps that prefill"
        self.decoded += int(plan.sample.sum())
        return "steps that decode"

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = call(*args)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


def params(args: argparse.Namespace, ask: Ask) -> SamplingParams:
    wish: dict[str, Any] = {}
    if args.compression_rate is not None:
        wish["max_cache_tokens"] = max(LEAST, int(len(ask.prompt) / args.compression_rate))
    if args.compress_once:
        wish["compress_once"] = True
    return SamplingParams(
        n=args.n,
        temperature=1.0 if args.n > 1 else 0.0,
        max_tokens=ask.output_len,
        ignore_eos=True,
        detokenize=False,
        **wish,
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures. Raises ValueError."""
    engine = LLMEngine.from_engine_args(engine_args(args))
    try:
        given = asks(args, engine)
        clocked = Clocked()
        clocked.watch(engine)
        for i, ask in enumerate(given):
            engine.add_request(str(i), ask.prompt, params(args, ask))
        outputs, start = [], time.perf_counter()
        with tqdm(total=len(given), desc="requests") as bar:
            while engine.has_unfinished_requests():
                done = [o for o in engine.step() if o.finished]
                outputs += done
                bar.update(len(done))
        seconds = time.perf_counter() - start
    finally:
        engine.shutdown()
    made = [c for o in outputs for c in o.outputs]
    generated = sum(len(c.token_ids) for c in made)
    if args.benchmark_output_only:
        seconds, generated = clocked.seconds["steps that decode"], clocked.decoded
    prompt_tokens = 0 if args.benchmark_output_only else sum(len(a.prompt) for a in given)
    figures = {
        "seconds": seconds,
        "requests_per_second": len(given) / seconds,
        "tokens_per_second": (prompt_tokens + generated) / seconds,
        "output_tokens_per_second": generated / seconds,
        "largest_decode_batch": clocked.largest_batch,
    }
    kvs = [c.kv_compression for c in made if c.kv_compression is not None]
    if kvs:
        kept = sum(k.kept for k in kvs)
        figures["compression_ratio"] = sum(k.logical for k in kvs) / max(1, kept)
    if args.latency_breakdown:
        figures["breakdown_seconds"] = dict(clocked.seconds)
    return figures


def main() -> None:
    args = make_parser().parse_args()
    try:
        figures = run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"Throughput: {figures['requests_per_second']:.2f} requests/s, "
        f"{figures['tokens_per_second']:.2f} total tokens/s, "
        f"{figures['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(f"Most sequences that decoded at once: {figures['largest_decode_batch']}")
    if "compression_ratio" in figures:
        print(f"KVs of the full caches / KVs kept: {figures['compression_ratio']:.2f}")
    for name, seconds in figures.get("breakdown_seconds", {}).items():
        print(f"  {name:22}{seconds:10.3f} s {100 * seconds / figures['seconds']:5.1f}%")
    given = {n: str(v) if isinstance(v, Path) else v for n, v in vars(args).items()}
    write_json(args.output_json, "throughput", figures | {"arguments": given})


if __name__ == "__main__":
    main()
