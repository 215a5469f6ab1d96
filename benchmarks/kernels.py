"""How fast is each C++ kernel beside plain torch?

    python benchmarks/kernels.py [--only attention] [--dtype float32] [--threads 1] [--json out]

Both sides of a row run alternately in one process, so that a busy machine slows them alike. `ratio`
is torch's time over ours, the median of the rounds, with the quartiles beside it; times, GB/s and
GFLOP/s are those of the fastest round. With one thread it is processor time that counts, without
the time that others had the core. Torch's side is `reference`, but for attention it is
`scaled_dot_product_attention` on KVs gathered beforehand, which leaves torch the easier work.
Weights rotate through more memory than the caches hold, as the layers of a model do.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle

import torch
import torch.nn.functional as F

from vllm.kernels import cpu, dense_batch, reference


@dataclass
class Pair:
    name: str
    ours: Callable[[], object]
    torchs: Callable[[], object]
    gbytes: float  # that must be moved
    gflops: float


@dataclass
class Row:
    name: str
    ours_us: float
    torch_us: float
    ratio: float
    low: float
    high: float
    gbps: float
    gflops: float


def linears(dtype: torch.dtype) -> Iterator[Pair]:
    for inputs, outputs in ((128, 512), (1024, 2048), (1024, 5632), (2816, 1024), (4096, 11008)):
        size = inputs * outputs * dtype.itemsize
        copies = max(1, min(24, (96 << 20) // size))
        weights = torch.randn(copies, outputs, inputs).to(dtype)
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
            x = torch.randn(tokens, inputs).to(dtype)
            ours, torchs = cycle(weights), cycle(weights)
            yield Pair(
                f"linear {tokens}x{inputs}x{outputs}",
                lambda x=x, w=ours: torch.ops.vllm_cpu.linear(x, next(w), None),
                lambda x=x, w=torchs: F.linear(x, next(w)),
                size / 1e9,
                2e-9 * tokens * inputs * outputs,
            )


def attentions(dtype: torch.dtype) -> Iterator[Pair]:
    """Sequences x new tokens behind a context, query heads / KV heads x head size."""
    for sequences, new, context, heads, kv_heads, dim in (
        (1, 1, 128, 8, 4, 32),
        (1, 1, 4096, 16, 8, 128),
        (1, 1, 16384, 14, 2, 64),
        (8, 1, 1024, 16, 8, 128),
        (32, 1, 512, 14, 2, 64),
        (32, 1, 1024, 8, 8, 128),
        (1, 128, 0, 8, 4, 32),
        (1, 512, 0, 16, 8, 128),
        (1, 512, 0, 14, 2, 64),
        (1, 2048, 0, 16, 8, 128),
        (1, 512, 4096, 16, 8, 128),
        (1, 16, 1024, 14, 2, 64),
    ):
        length, size = new + context, 16
        blocks = -(-length // size)
        ids = list(range(sequences * blocks))
        random.Random(0).shuffle(ids)
        tables = [ids[s * blocks : (s + 1) * blocks] for s in range(sequences)]
        batch = dense_batch(tables, [context] * sequences, [new] * sequences, size)
        kv = torch.randn(len(ids), 1, kv_heads, 2, size, dim).to(dtype)[:, 0]
        q = torch.randn(sequences * new, heads, dim).to(dtype)
        k, v = torch.randn(2, sequences, kv_heads, length, dim).to(dtype)
        queries = q.view(sequences, new, heads, dim).transpose(1, 2).contiguous()
        mask = (
            torch.ones(new, length, dtype=torch.bool).tril(context) if context * new > 1 else None
        )
        options = {"attn_mask": mask} if mask is not None and new > 1 else {"is_causal": new > 1}
        pairs = sequences * new * (context + (new + 1) / 2)
        yield Pair(
            f"attention {sequences}x{new} behind {context}, {heads}/{kv_heads}x{dim}",
            lambda q=q, kv=kv, b=batch: cpu.attention(q, kv, b, 0.1, 0),
            lambda q=queries, k=k, v=v, o=options: F.scaled_dot_product_attention(
                q, k, v, enable_gqa=True, **o
            ),
            1e-9 * sequences * length * kv_heads * 2 * dim * dtype.itemsize,
            4e-9 * pairs * heads * dim,
        )


def elementwise(dtype: torch.dtype) -> Iterator[Pair]:
    for tokens in (1, 32, 512):
        x = torch.randn(tokens, 1024).to(dtype)
        residual, weight = x.clone() * 0, torch.ones(1024, dtype=dtype)
        gates = torch.randn(tokens, 2 * 2816).to(dtype)
        fused = torch.randn(tokens, 18, 64).to(dtype)
        positions, cos_sin = torch.arange(tokens), torch.randn(4096, 64)
        kv = torch.zeros(64, 4, 2, 2, 16, 64, dtype=dtype)[:, 1]
        q, k, v = fused.split([14, 2, 2], 1)
        slots = torch.randperm(1024)[:tokens]
        for name, moved, arguments in (
            ("rms_norm", 2 * x.nbytes, (x, weight, 1e-5)),
            ("add_rms_norm", 4 * x.nbytes, (x, residual, weight, 1e-5)),
            ("silu_and_mul", 1.5 * gates.nbytes, (gates,)),
            ("rotary", 2 * (q.nbytes + k.nbytes), (positions, q, k, cos_sin)),
            ("write_kv", 2 * (k.nbytes + v.nbytes), (kv, k, v, slots)),
        ):
            ours, torchs = getattr(cpu, name), getattr(reference, name)
            yield Pair(
                f"{name} {tokens} tokens",
                lambda f=ours, a=arguments: f(*a),
                lambda f=torchs, a=arguments: f(*a),
                moved / 1e9,
                0,
            )


def measure(pair: Pair, seconds: float) -> Row:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def timed(call: Callable[[], object], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    calls = (pair.ours, pair.torchs)
    repeats = [max(1, int(seconds / 24 / max(timed(c, 1), timed(c, 1)))) for c in calls]
    rounds = [[timed(c, n) for c, n in zip(calls, repeats, strict=True)] for _ in range(12)]
    low, ratio, high = statistics.quantiles([theirs / our for our, theirs in rounds], n=4)
    ours, theirs = (min(column) for column in zip(*rounds, strict=True))
    return Row(
        pair.name,
        ours * 1e6,
        theirs * 1e6,
        ratio,
        low,
        high,
        pair.gbytes / ours,
        pair.gflops / ours,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose name starts so")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", help="instruction set (default: the best)")
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long a row takes")
    parser.add_argument("--json", help="write the rows here too")
    args = parser.parse_args()
    if reason := cpu.available("cpu"):
        parser.error(f"C++ kernels: {reason}")
    if args.isa:
        torch.ops.vllm_cpu.set_isa(args.isa)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    isa = torch.ops.vllm_cpu.isa()
    print(f"{args.dtype}, {isa}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'':44}{'us':>9}{'torch us':>10}{'ratio':>7}{'quartiles':>14}{'GB/s':>7}{'GFLOP/s':>9}")
    rows = []
    with torch.inference_mode():
        for source in (linears, attentions, elementwise):
            for pair in source(dtype):
                if not pair.name.startswith(args.only):
                    continue
                row = measure(pair, args.seconds)
                rows.append(row)
                print(
                    f"{row.name:44}{row.ours_us:9.1f}{row.torch_us:10.1f}{row.ratio:7.2f}"
                    f"{row.low:7.2f}-{row.high:<6.2f}{row.gbps:7.1f}{row.gflops:9.1f}",
                    flush=True,
                )
    if args.json:
        with open(args.json, "w") as out:
            about = {"dtype": args.dtype, "isa": isa, "threads": args.threads}
            json.dump(about | {"rows": [asdict(row) for row in rows]}, out, indent=1)


if __name__ == "__main__":
    main()
