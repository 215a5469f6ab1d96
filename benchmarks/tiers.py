"""What the tiers cost and what they are worth, in one run, the contenders in turn.

python -m benchmarks.tiers [--rounds 5] [--only multi-turn] [--json results/tiers.json]

copies       mover and host tier against a plain memcpy of the same bytes on as many threads
multi-turn   sessions whose KVs fit into device + host but not into the device: against an
             engine whose device holds them all, and against one without tiers
synchronous  the same with every move between steps (--no-enable-async-swapping)
fits         the same with all of it inside the device: what the tiers cost then
restart      first answer to a 2,048-token prompt: cold, and from a disk that is warm

The disk against fio: benchmarks.disk_tier.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import make_model
from benchmarks.measure import alternate, spread, write_json
from vllm.config import EngineArgs
from vllm.engine.llm_engine import LLMEngine
from vllm.entrypoints.executor import make_executor
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover
from vllm.kv.tiers.host import HostTier
from vllm.sampling_params import SamplingParams

THREADS, BATCH = 2, 16
SESSIONS, TURNS, FIRST, LATER, ANSWER = 12, 3, 512, 64, 8


ROWS = {
    ("copies", "store_of_memcpy"): "host store, of memcpy's speed",
    ("copies", "load_of_memcpy"): "host load, of memcpy's speed",
    ("multi_turn", "of_all_on_device"): "multi-turn, of all on the device",
    ("multi_turn", "against_no_tiers"): "multi-turn, against no tiers",
    ("multi_turn", "against_synchronous"): "multi-turn, against synchronous",
    ("fits", "of_no_tiers"): "fits the device, of no tiers",
    ("restart", "warm_of_cold"): "restart, warm TTFT of cold",
}


def copies(rounds: int, block_bytes: int = 1 << 20, blocks: int = 256) -> dict[str, Any]:
    """Store and load `blocks` blocks through the mover, and memcpy as many bytes."""
    source = np.ones((blocks, block_bytes), dtype=np.uint8)
    target = np.ones((blocks, block_bytes), dtype=np.uint8)
    tier = HostTier(blocks, block_bytes)
    mover = Mover([tier], threads=THREADS, max_queued=blocks)
    keys = [Key(i.to_bytes(32, "little")) for i in range(blocks)]

    def move(kind: Kind) -> None:
        for at in range(0, blocks, BATCH):
            views = [memoryview(source[i]) for i in range(at, min(at + BATCH, blocks))]
            mover.submit(Job(kind, "host", keys[at : at + BATCH], views))
        while mover.busy:
            mover.wait(0.1)
            mover.poll()

    def store() -> float:
        for key in keys:
            tier.delete(key)
        start = time.perf_counter()
        move(Kind.STORE)
        return time.perf_counter() - start

    def memcpy() -> None:
        def part(first: int) -> None:
            for i in range(first, blocks, THREADS):
                np.copyto(target[i], source[i])

        threads = [threading.Thread(target=part, args=(i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    timed = alternate(
        "copies", {"store": store, "load": lambda: move(Kind.LOAD), "memcpy": memcpy}, rounds
    )
    mover.shutdown()
    return {
        "seconds": timed.seconds,
        "store_of_memcpy": timed.ratio("store", "memcpy"),
        "load_of_memcpy": timed.ratio("load", "memcpy"),
    }


def engine(folder: Path, blocks: int, **more: Any) -> LLMEngine:
    args = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        max_model_len=2560,
        hf_overrides={"max_position_embeddings": 4096},
        num_gpu_blocks_override=blocks,
        max_num_seqs=4,
        max_num_batched_tokens=1024,
        **more,
    )
    return LLMEngine(args.create_engine_config(), make_executor)


def multi_turn(served: LLMEngine, seed: int) -> float:
    """Seconds for all sessions' later turns; a session asks again once all others have."""
    rng = random.Random(seed)
    served.reset_prefix_cache(reset_connector=True)
    histories = [[rng.randrange(10, 30000) for _ in range(FIRST)] for _ in range(SESSIONS)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    start = 0.0
    for turn in range(TURNS):
        if turn == 1:
            start = time.perf_counter()
        for i, history in enumerate(histories):
            served.add_request(f"{turn}-{i}", history, params)
        while served.has_unfinished_requests():
            for output in served.step():
                if output.finished:
                    i = int(output.request_id.partition("-")[2])
                    histories[i] += output.outputs[0].token_ids
                    histories[i] += [rng.randrange(10, 30000) for _ in range(LATER)]
    return time.perf_counter() - start


def sessions(folder: Path, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    need = SESSIONS * -(-(FIRST + TURNS * (LATER + ANSWER)) // 16)
    host = {"enable_multi_tier_prefix_caching": True, "num_cpu_blocks_override": 2 * need}
    aware = {"enable_prefix_aware_scheduling": True}
    small, large = need // 2, need + 64
    engines = {
        "tiers": engine(folder, small, **host, **aware),
        "synchronous": engine(folder, small, enable_async_swapping=False, **host, **aware),
        "no_tiers": engine(folder, small),
        "all_on_device": engine(folder, large),
        "all_on_device_tiers": engine(folder, large, **host, **aware),
    }
    seeds = {name: iter(range(1000)) for name in engines}
    timed = alternate(
        "multi-turn",
        {
            name: (lambda served=served, name=name: multi_turn(served, next(seeds[name])))
            for name, served in engines.items()
        },
        rounds,
    )
    for served in engines.values():
        served.shutdown()
    spilled = {
        "seconds": timed.seconds,
        "of_all_on_device": timed.ratio("tiers", "all_on_device"),
        "against_no_tiers": timed.ratio("tiers", "no_tiers"),
        "against_synchronous": timed.ratio("tiers", "synchronous"),
    }
    fits = {"of_no_tiers": timed.ratio("all_on_device_tiers", "all_on_device")}
    return spilled, fits


def restart(folder: Path, rounds: int) -> dict[str, Any]:
    """TTFT of the first prompt after a restart, with an empty and with a warm disk."""
    cold, warm = [], []
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    for i in range(rounds):
        rng = random.Random(i)
        prompt = [rng.randrange(10, 30000) for _ in range(2048)]
        with tempfile.TemporaryDirectory() as disk:
            for times in (cold, warm):
                served = engine(
                    folder,
                    200,
                    enable_multi_tier_prefix_caching=True,
                    swap_space=0,
                    disk_cache_dir=disk,
                )
                start = time.perf_counter()
                served.add_request("0", prompt, params)
                while served.has_unfinished_requests():
                    served.step()
                times.append(time.perf_counter() - start)
                served.shutdown()  # what is only on the device goes to the disk
    ratios = [w / c for c, w in zip(cold, warm, strict=True)]
    return {
        "cold": cold,
        "warm": warm,
        "warm_of_cold": (statistics.median(ratios), min(ratios), max(ratios)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6, help="of the random model; 24 are 0.5 B")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "vllm-bench-llama"))
    parser.add_argument("--json", help="where to write the results")
    parser.add_argument("--only", choices=("copies", "multi-turn", "restart"))
    args = parser.parse_args()
    folder = Path(f"{args.folder}-{args.layers}")
    make_model(folder, args.layers)
    results: dict[str, Any] = {}
    if args.only in (None, "copies"):
        results["copies"] = copies(args.rounds)
    if args.only in (None, "multi-turn"):
        results["multi_turn"], results["fits"] = sessions(folder, args.rounds)
    if args.only in (None, "restart"):
        results["restart"] = restart(folder, args.rounds)
    for (part, ratio), name in ROWS.items():
        if part in results:
            print(f"{name:36} {spread(results[part][ratio])}")
    write_json(args.json, "tiers", results)


if __name__ == "__main__":
    main()
