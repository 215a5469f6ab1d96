"""What compression buys where memory is short, and what it costs where nothing is compressed.

    python -m benchmarks.compression [--rounds 3] [--contenders 64x:128 8x:64 off:24]

Two layers of Qwen1.5-0.5B's shape with random weights in bf16: with three requests a step the time
goes into reading weights and KVs that no cache holds. The memory is for about three requests at
their longest, and all requests are there at once. The contenders take turns, and wait while other
processes use the CPUs. Lines:

    tokens/s   generated tokens a second of all requests: without compression, with memory for
               64 of them (what running many at once can bring on this machine), and at each rate
    idle       --enable-kvc with nothing compressed against an engine without it
    prefill    the share of a long prompt's time that compressing it takes
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import make_model
from benchmarks.measure import Rounds, alternate, spread, write_json
from benchmarks.quiet import QuietWatch
from vllm.config import EngineArgs
from vllm.engine.llm_engine import LLMEngine
from vllm.entrypoints.executor import make_executor
from vllm.sampling_params import RequestOutputKind, SamplingParams

LAYERS, VOCAB = 2, 4096  # a vocabulary in proportion to two layers
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
}
BLOCK, FULL = 16, 3  # FULL: requests at their longest that the cache holds
PROTECTED = 16
REQUESTS = 256
MOST = 64  # requests at their longest for which there is room without compression, to compare
WHO = ("off", "room", "64x", "8x")


class Contender:
    def __init__(self, folder: Path, blocks: int, **options: Any) -> None:
        args = EngineArgs(
            model=str(folder),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            block_size=BLOCK,
            num_gpu_blocks_override=blocks,
            max_model_len=min(4096, blocks * BLOCK),
            max_num_batched_tokens=1024,
            max_num_seqs=64,
            enable_prefix_caching=False,
            **options,
        )
        self.engine = LLMEngine(args.create_engine_config(), make_executor)
        self._count = 0
        self.running: list[int] = []  # at each step of the last run
        self.waited = 0.0  # seconds, for other processes, in all runs
        self.stats: Any = None

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """All of them to their end. Returns the seconds that it took."""
        params = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for prompt in prompts:
            self._count += 1
            self.engine.add_request(str(self._count), prompt, params)
        self.running = []
        watch = QuietWatch()
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    self.stats = output.outputs[0].kv_compression
            self.running.append(len(self.engine.core.scheduler.running))
            watch.tick()
        watch.stop()
        self.waited += watch.waited
        return watch.seconds


def prompts(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(10, VOCAB, (count, length), generator=generator).tolist()


def contender_and_requests(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(off|room|[1-9]\d*x)(?::([1-9]\d*))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be off, room or a rate as 8x, not {text!r}")
    return found[1], int(found[2] or REQUESTS)


def throughput(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Many requests in little memory, once a contender and round."""
    longest = options.prompt + options.output
    blocks = FULL * -(-longest // BLOCK)
    contenders, work = {}, {}
    for who, count in options.contenders:
        work[who] = prompts(count, options.prompt)
        if who in ("off", "room"):
            room = blocks if who == "off" else blocks * MOST // FULL
            contenders[who] = Contender(folder, room)
            continue
        contenders[who] = Contender(
            folder,
            blocks,
            enable_kvc=True,
            target_compression_rate=1 / int(who[:-1]),
            protected_window_size=PROTECTED,
            compression_interval=options.interval,
            only_prefill_metrics=not options.decode_metrics,
        )
    for who, contender in contenders.items():
        contender.run(work[who][:2], 4)

    def a_token(who: str) -> float:
        """Seconds."""
        made = len(work[who]) * options.output
        return contenders[who].run(work[who], options.output) / made

    rounds = alternate(
        "throughput",
        {who: partial(a_token, who) for who in contenders},
        options.rounds,
        warmup=0,
    )
    told: dict[str, Any] = {"seconds_a_token": rounds.seconds}
    first, _ = options.contenders[0]
    for who, contender in contenders.items():
        speed = 1 / rounds.median(who)
        batch = sum(contender.running) / len(contender.running)
        kept = contender.stats.ratio if contender.stats else 1.0
        print(
            f"{who:>4}: {speed:7.0f} tokens/s, {spread(rounds.ratio(who, first))} of {first}, "
            f"{batch:.1f} running, {kept:.1f} x fewer KVs at the end"
        )
        told[who] = {
            "requests": len(work[who]),
            "tokens_per_second": speed,
            "running": batch,
            "ratio": kept,
            "waited": contender.waited,
        }
    return told


def idle(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """No request asks for compression: what does the ability to compress cost?"""
    contenders = {
        "off": Contender(folder, 2048),
        "on": Contender(folder, 2048, enable_kvc=True),
    }
    work = prompts(32, 256)
    rounds = alternate(
        "idle",
        {who: lambda c=c: c.run(work, 64) for who, c in contenders.items()},
        max(5, options.rounds),
    )
    print(f"idle: {spread(rounds.ratio('on', 'off'))} of the throughput without")
    return {"seconds": rounds.seconds}


def prefill(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One long prompt, on some layers of a 0.5 B Llama: the share that compressing has."""
    length = 2000
    make_model(folder / "larger", 4, max_position_embeddings=4096)
    contender = Contender(
        folder / "larger",
        256,
        enable_kvc=True,
        target_compression_rate=1 / 8,
        protected_window_size=PROTECTED,
    )
    compressor = contender.engine.core.executor.model_runner._compressor
    plain, spent = compressor.compress, [0.0]
    observe = compressor.observe

    def timed(function: Any) -> Any:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            spent[0] += time.perf_counter() - start
            return result

        return call

    compressor.compress, compressor.observe = timed(plain), timed(observe)
    rounds = Rounds("prefill", {"all": [], "compressing": []})
    work = prompts(options.rounds + 4, length)
    for i, prompt in enumerate(work):
        spent[0] = 0.0
        taken = contender.run([prompt], 2)
        if i:
            rounds.seconds["all"].append(taken)
            rounds.seconds["compressing"].append(spent[0])
    shares = [c / (a - c) for a, c in zip(*rounds.seconds.values(), strict=True)]
    shares.sort()
    print(f"prefill of {length}: compressing adds {100 * shares[len(shares) // 2]:.1f} %")
    return {"seconds": rounds.seconds, "share": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output", type=int, default=3072)
    parser.add_argument("--interval", type=int, default=128)
    parser.add_argument(
        "--contenders",
        nargs="+",
        type=contender_and_requests,
        default=[(who, REQUESTS) for who in WHO],
        metavar="WHO[:REQUESTS]",
        help=f"off, room or a rate as 8x; {REQUESTS} requests if not said; ratios are to the first",
    )
    parser.add_argument(
        "--decode-metrics", action="store_true", help="observe decode queries as well"
    )
    parser.add_argument("--only", choices=("throughput", "idle", "prefill"))
    parser.add_argument("--json")
    options = parser.parse_args()
    parts = {"throughput": throughput, "idle": idle, "prefill": prefill}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, LAYERS, **SIZES)
        result = {
            part: run(folder, options)
            for part, run in parts.items()
            if options.only in (None, part)
        }
    write_json(options.json, "compression", result | {"options": vars(options)})


if __name__ == "__main__":
    main()
