"""Every combination of the five switches gives the tokens of an engine that caches nothing,
wherever what is cached lies, however prompts are cut, whether requests must make room or not.

In float32 on the CPU that holds to the token. Blocks that nobody holds are full of NaNs.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.presets import SWITCHES
from vllm.config import EngineArgs
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

COMBINATIONS = list(itertools.product([False, True], repeat=len(SWITCHES)))
SIZE, LENGTHS, ANSWER = 16, (33, 48, 65, 80), 6
BLOCKS = sum(length // SIZE for length in LENGTHS)  # full ones
ROOMY, TIGHT = 40, BLOCKS + 2  # the latter not enough for all with their answers
CHUNKS = (7, 160)


def name(bits: tuple[bool, ...]) -> str:
    return "".join(str(int(bit)) for bit in bits)


def refusal(bits: tuple[bool, ...]) -> str | None:
    """A word of the reason why this combination cannot be, or None."""
    caching, tiers, swapping, aware, prefetch = bits
    if tiers and not caching:
        return "needs prefix caching"
    if aware and not caching:
        return "prefix-aware scheduling needs prefix caching"
    if prefetch and not tiers:
        return "enable_async_prefetching needs enable_multi_tier"
    if prefetch and not swapping:
        return "enable_async_prefetching needs enable_async_swapping"
    return None


def make(bits: tuple[bool, ...], **options) -> LLMEngine:
    given = dict(zip(SWITCHES, bits, strict=True)) | {
        "dtype": "float32",
        "kernels": "reference",
        "cpu_threads": 1,
        "block_size": SIZE,
        "max_model_len": 96,
        "max_num_seqs": 4,
        "num_gpu_blocks_override": ROOMY,
    }
    engine = LLMEngine.from_engine_args(EngineArgs(**(given | options)))
    core, executor = engine.core, engine.core.executor
    arena, plain = executor.model_runner.kv, executor.execute
    arena.fill_(math.nan)

    def execute(plan):
        arena[torch.tensor(core.scheduler.kv.pool._free, dtype=torch.int64)] = math.nan
        core.check()
        return plain(plan)

    executor.execute = execute
    return engine


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(1000) for _ in range(length)] for length in LENGTHS]


def run(
    engine: LLMEngine, texts: list[list[int]], answer: int = ANSWER, preempting: bool = False
) -> list[RequestOutput]:
    """All at once; preempting: four times, one of those that run must make room."""
    params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
    for i, text in enumerate(texts):
        engine.add_request(str(i), text, params)
    outputs, scheduler, rng = [], engine.core.scheduler, random.Random(7)
    left = 4
    for step in itertools.count():
        if not engine.has_unfinished_requests():
            break
        if preempting and step % 2 and scheduler.running and left:
            scheduler._preempt(rng.choice(scheduler.running))
            left -= 1
        outputs += [o for o in engine.step() if o.finished]
    assert left == 0 or not preempting
    return sorted(outputs, key=lambda o: int(o.request_id))


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in outputs]


def place(engine: LLMEngine, where: str) -> None:
    """Have the full blocks of all prompts there, and nowhere else."""
    kv = engine.core.scheduler.kv
    assert engine.core.reset_prefix_cache()
    if where == "none":
        return
    for text in prompts():
        run(engine, [text], answer=1)
    if kv.tiers is None:
        return
    while engine.core.tidy():
        kv.wait(0.01)
    host, disk = kv.tiers.levels
    assert len(kv.index) == len(host.shelf) == len(disk.shelf) == BLOCKS
    for level in (host, disk):
        for i, key in enumerate(level.shelf.readable()):
            mixed = where == "mixed" and i % 2 == (level is disk)
            if level.tier.name != where and not mixed:
                level.shelf.discard(key)
                level.tier.delete(key)
    if where != "device":
        assert kv.pool.forget_cached()
    if where == "mixed":
        for text in prompts():  # the beginnings are on the device too
            run(engine, [text[: SIZE + 1]], answer=1)
    kv.check()


def idle(engine: LLMEngine) -> bool:
    """Whether no block is lost, and nobody holds one."""
    kv = engine.core.scheduler.kv
    while kv.tiers is not None and kv.tiers.busy:
        kv.wait(0.01)
    kv.check()
    return kv.reset() and kv.pool.free == kv.num_blocks and not kv._tables and not kv._names


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return tokens(run(make((False,) * 5), prompts()))


@pytest.mark.parametrize("bits", COMBINATIONS, ids=name)
def test_tokens_are_those_of_an_engine_that_caches_nothing(tmp_path: Path, expected, bits):
    caching, tiers, *_, prefetch = bits
    reason = refusal(bits)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            make(bits)
        return
    places = ["none"] + ["device"] * caching + ["host", "disk", "mixed"] * tiers
    modes = [None, "recompute"] + ["swap"] * tiers
    for chunk, mode in itertools.product(CHUNKS, modes):
        more = {}
        if tiers:
            more = {"num_cpu_blocks_override": 64, "min_load_tokens": 0}
            more["disk_cache_dir"] = str(tmp_path / f"{chunk}-{mode}")
        engine = make(
            bits,
            max_num_batched_tokens=chunk,
            num_gpu_blocks_override=ROOMY if mode is None else TIGHT,
            preemption_mode=mode or "recompute",
            **more,
        )
        for where in places:
            place(engine, where)
            outputs = run(engine, prompts(), preempting=mode is not None)
            assert tokens(outputs) == expected, (chunk, mode, where)
            if mode is None:
                check_sources(outputs, where, prefetch=prefetch)
            assert idle(engine), "no block is lost"
        engine.core.shutdown()


def check_sources(outputs: list[RequestOutput], where: str, *, prefetch: bool) -> None:
    """All that was cached was taken, and from where it was."""
    total: Counter[str] = Counter()
    for output in outputs:
        total.update(output.cached_by_source)
        assert output.num_cached_tokens == sum(output.cached_by_source.values())
    cached = sum((length - 1) // SIZE * SIZE for length in LENGTHS)
    assert total.total() == (0 if where == "none" else cached)
    if where == "mixed":
        assert prefetch or (total["host"] and total["disk"] and total["device"])
    elif where != "none" and not prefetch:
        assert total[where] == cached
