"""What must make no difference, and what nobody else may notice."""

from __future__ import annotations

import hashlib

import pytest
import torch

from compression.engines import Engine, Ran, checkpoint, prompt
from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams

OFTEN = CompressionParams(max_cache_tokens=12, protected_window_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def same(a: Ran, b: Ran, *, exact: bool = False) -> None:
    assert a.tokens == b.tokens
    close = {"atol": 0, "rtol": 0} if exact else {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(torch.stack(a.logprobs), torch.stack(b.logprobs), **close)
    assert (a.reason, a.stats) == (b.reason, b.stats)


def same_choices(a: Engine, b: Engine, first: int = 1, second: int = 1) -> None:
    mine = [e for e in a.events if e.seq == first]
    others = [e for e in b.events if e.seq == second]
    assert [e.tokens for e in mine] == [e.tokens for e in others]
    assert mine
    assert all(torch.equal(e.kept, o.kept) for e, o in zip(mine, others, strict=True))


@pytest.mark.parametrize(
    "params",
    [
        CompressionParams(max_cache_tokens=80),
        CompressionParams(target_compression_rate=1.0),
        CompressionParams(target_compression_rate=0.1, protected_window_size=100),
        CompressionParams(target_compression_rate=0.1, protected_spans=((0, 80),)),
        CompressionParams(target_compression_rate=0.1, sinks=100, metric="h2o"),
    ],
    ids=["budget", "rate 1", "window", "span", "sinks"],
)
def test_a_compression_that_keeps_everything_is_none(folder, params):
    tokens = prompt(50)
    off = Engine(folder).one(tokens, max_tokens=20)
    on = Engine(folder).one(tokens, params, max_tokens=20)
    same(on, off, exact=True)
    assert on.stats.kept == on.stats.logical
    assert on.stats.times == 0


def test_an_engine_that_compresses_leaves_others_alone(folder):
    """Bit by bit what an engine without --enable-kvc computes."""
    tokens = prompt(50)
    plain = Engine(folder, compression=False).one(tokens, max_tokens=20)
    assert plain.stats is None
    on = Engine(folder).one(tokens, max_tokens=20)
    assert on.stats is not None
    assert on.logprobs[-1].equal(plain.logprobs[-1])
    assert on.tokens == plain.tokens


@pytest.mark.parametrize("metric", ["kvc-diff", "kvc", "kvc-full", "h2o", "tova", "rkv"])
@pytest.mark.parametrize("chunk", [7, 16])
def test_chunks_make_no_difference(folder, metric, chunk):
    params = CompressionParams(max_cache_tokens=12, protected_window_size=4, metric=metric)
    settings = CompressionSettings(block=20)
    tokens = prompt(61)
    whole, cut = Engine(folder, settings), Engine(folder, settings, max_num_batched_tokens=chunk)
    same(cut.one(tokens, params, max_tokens=16), whole.one(tokens, params, max_tokens=16))
    same_choices(cut, whole)


@pytest.mark.parametrize("metric", ["kvc-diff", "kvc", "knorm", "h2o", "expected-attention"])
def test_company_makes_no_difference(folder, metric):
    params = CompressionParams(max_cache_tokens=12, protected_window_size=4, metric=metric)
    tokens = prompt(44)
    alone, shared = Engine(folder), Engine(folder, max_num_batched_tokens=30)
    expected = alone.one(tokens, params, max_tokens=20)
    shared.request("a", prompt(35, 1), OFTEN, max_tokens=25)
    shared.request("mine", tokens, params, max_tokens=20)
    shared.request("b", prompt(20, 2), max_tokens=30)
    shared.request("c", prompt(44, 3), OFTEN, max_tokens=9)
    same(shared.run()["mine", 0], expected)
    same_choices(shared, alone, 2, 1)


@pytest.mark.parametrize("metric", ["kvc-diff", "snapkv", "knorm", "tova", "kvc-full"])
def test_a_cached_prefix_makes_no_difference(folder, metric):
    """Nor does what was compressed from the same blocks before."""
    params = CompressionParams(max_cache_tokens=12, protected_window_size=4, metric=metric)
    settings = CompressionSettings(window=8)
    tokens = prompt(61)
    engine = Engine(folder, settings)
    miss, hit = (engine.one(tokens, params, max_tokens=16) for _ in range(2))
    most = {"kvc-diff": 53, "snapkv": 53, "knorm": 60, "tova": 60, "kvc-full": 0}[metric]
    assert miss.cached == 0
    assert hit.cached == most // 4 * 4
    same(hit, miss)
    same_choices(engine, engine, 1, 2)


def test_nobody_sees_that_others_compress(folder):
    """Bytes and keys of the prefix cache are those of an engine in which nobody does."""
    prompts = [prompt(40, seed % 2) + prompt(9, seed) for seed in range(4)]

    def cache(params: CompressionParams | None) -> dict[bytes, str]:
        engine = Engine(folder)
        seen: dict[bytes, str] = {}

        def look() -> None:
            for key, block in engine.kv.index.items():
                data = engine.runner.kv[block].numpy().tobytes()
                digest = hashlib.sha256(data).hexdigest()
                assert seen.setdefault(key, digest) == digest, "a published block has changed"

        plain = engine.core.executor.execute

        def execute(plan):
            look()
            return plain(plan)

        engine.core.executor.execute = execute
        for i, tokens in enumerate(prompts):
            engine.request(f"r{i}", tokens, params, max_tokens=12)
        engine.run()
        engine.request("last", prompts[0], max_tokens=3)
        engine.run()
        look()
        return seen

    without, beside = cache(None), cache(OFTEN)
    published = {key for key in beside if key in without}
    assert beside.keys() == published, "nothing is published that was computed behind a gap"
    assert len(published) >= 2 * 10 + 4 * 2
    assert all(beside[key] == without[key] for key in published)


@pytest.mark.parametrize("metric", ["kvc-diff", "kvc", "h2o", "knorm"])
def test_one_that_was_preempted_goes_on_as_if_not(folder, metric):
    """It starts again from its prompt, and is compressed where it was before."""
    params = CompressionParams(max_cache_tokens=16, protected_window_size=4, metric=metric)
    expected = Engine(folder).one(prompt(40), params, max_tokens=30)
    for after in (1, 3, 6, 7, 8, 9, 25):
        engine = Engine(folder, max_num_batched_tokens=16)
        engine.request("one", prompt(40), params, max_tokens=30)
        outputs = []
        for _ in range(after):
            outputs += engine.core.step().outputs
        scheduler = engine.core.scheduler
        scheduler._preempt(scheduler.running[0])
        told = [t for o in outputs for t in o.token_ids]
        ran = engine.run()["one", 0]
        assert ran.preemptions == 1
        assert told + ran.tokens == expected.tokens
        torch.testing.assert_close(
            torch.stack(ran.logprobs),
            torch.stack(expected.logprobs[len(told) :]),
            atol=1e-5,
            rtol=0,
        )
        assert ran.stats == expected.stats


@pytest.mark.parametrize("metric", ["kvc-diff", "h2o", "tova", "rkv"])
def test_one_that_was_swapped_out_goes_on_bit_by_bit(folder, metric):
    """Its head blocks, and what its metric knows, come back as they went."""
    params = CompressionParams(max_cache_tokens=16, protected_window_size=4, metric=metric)
    expected = Engine(folder).one(prompt(40), params, max_tokens=30)
    for after in (2, 3, 4, 6, 9, 17, 26):
        engine = Engine(
            folder,
            max_num_batched_tokens=16,
            enable_multi_tier_prefix_caching=True,
            num_cpu_blocks_override=64,
            preemption_mode="swap",
        )
        engine.request("one", prompt(40), params, max_tokens=30)
        outputs = []
        for _ in range(after):
            outputs += engine.core.step().outputs
        scheduler = engine.core.scheduler
        before = scheduler.running[0].applied
        scheduler._preempt(scheduler.running[0])
        assert scheduler.waiting[0].parked
        started = len(engine.events)
        ran = engine.run()["one", 0]
        assert ran.preemptions == 1
        assert len([e for e in engine.events[started:] if e.seq == 1]) == ran.stats.times - before
        told = sum(len(o.token_ids) for o in outputs)
        same_rows = zip(ran.logprobs, expected.logprobs[told:], strict=True)
        assert all(torch.equal(a, b) for a, b in same_rows)
        assert ran.stats == expected.stats


@pytest.mark.parametrize("metric", ["kvc-diff", "kvc-full", "knorm"])
def test_several_outputs_of_one_prompt(folder, metric):
    """Each is compressed for itself, from blocks that they share, as if it were alone."""
    params = CompressionParams(max_cache_tokens=12, protected_window_size=4, metric=metric)
    tokens = prompt(50)
    engine = Engine(folder, CompressionSettings(window=8))
    sampling = {"temperature": 1.0, "max_tokens": 12}
    engine.request("three", tokens, params, n=3, seed=5, **sampling)
    ran = engine.run()
    for index in range(3):
        alone = Engine(folder, CompressionSettings(window=8))
        expected = alone.one(tokens, params, seed=5 + index, **sampling)
        same(ran["three", index], expected)
        same_choices(engine, alone, 1 + index, 1)
    assert len({tuple(r.tokens) for r in ran.values()}) == 3


def test_ends_at_any_moment_leave_nothing_behind(folder):
    """Abort after every number of steps; what is left is run to its end by the next request."""
    tokens = prompt(30)
    for steps in range(1, 14):
        engine = Engine(folder, max_num_batched_tokens=8, num_gpu_blocks_override=80)
        engine.request("gone", tokens, OFTEN, max_tokens=12, n=2, temperature=1.0)
        engine.request("stays", tokens, OFTEN, max_tokens=12)
        for _ in range(steps):
            engine.core.step()
        engine.core.abort(["gone"])
        engine.core.check()
        assert len(engine.run()["stays", 0].tokens) <= 12
