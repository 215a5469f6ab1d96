"""Compressed prefixes that are shared: a hit is as if the request had made the snapshot itself."""

from __future__ import annotations

import hashlib

import pytest
import torch

from compression.engines import Engine, Ran, checkpoint, prompt
from compression.oracle import oracle
from vllm.config.compression import CompressionSettings
from vllm.core.compression import METRICS, CompressionParams
from vllm.kernels import cpu

KERNELS = ["reference", *(["cpu"] if cpu.available("cpu") is None else [])]
SHARED, OWN = 41, 22
SYSTEM = prompt(SHARED, 1)
SWAP = {
    "enable_multi_tier_prefix_caching": True,
    "num_cpu_blocks_override": 64,
    "preemption_mode": "swap",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def wish(**fields) -> CompressionParams:
    given = {"max_cache_tokens": 12, "protected_window_size": 4, "shared_prefix_tokens": SHARED}
    return CompressionParams(**(given | fields))


def sharing(folder, settings: CompressionSettings | None = None, **options) -> Engine:
    return Engine(folder, settings or CompressionSettings(share=True), **options)


def snapshots(engine: Engine):
    return engine.kv._snapshots


def agent(seed: int, own: int = OWN) -> list[int]:
    return SYSTEM + prompt(own, seed)


def same(a: Ran, b: Ran) -> None:
    """Bit by bit."""
    assert a.tokens == b.tokens
    assert all(torch.equal(x, y) for x, y in zip(a.logprobs, b.logprobs, strict=True))
    assert (a.reason, a.stats) == (b.reason, b.stats)


def close(a: Ran, b: Ran) -> None:
    """For the same work in other steps: sums are in another order."""
    assert a.tokens == b.tokens
    torch.testing.assert_close(torch.stack(a.logprobs), torch.stack(b.logprobs), atol=1e-5, rtol=0)
    assert (a.reason, a.stats) == (b.reason, b.stats)


@pytest.mark.parametrize("metric", METRICS)
def test_a_hit_is_as_a_miss(folder, metric):
    params = wish(metric=metric)
    expected = sharing(folder).one(agent(2), params, max_tokens=16)
    engine = sharing(folder)
    miss = engine.one(agent(1), params, max_tokens=16)
    hit = engine.one(agent(2), params, max_tokens=16)
    assert miss.cached == 0
    assert (hit.cached, hit.sources) == (SHARED, {"compressed": SHARED})
    same(hit, expected)
    assert next(e.tokens for e in engine.events if e.seq == 2) == SHARED + OWN
    assert hit.stats.times > 2
    # And both are what a dense run gives that sees exactly what was kept.
    for seq, own, ran in ((1, 1, miss), (2, 2, hit)):
        events = [e for e in engine.events if e.seq == seq or e.tokens == SHARED]
        tokens = agent(own)
        logprobs = oracle(folder, tokens + ran.tokens, events)[len(tokens) - 1 : -1]
        torch.testing.assert_close(torch.stack(ran.logprobs), logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_one_token_behind_the_prefix(folder, metric):
    """All that the metric sees of the prompt's own queries is one."""
    engine = sharing(folder)
    miss, hit = (engine.one(agent(1, 1), wish(metric=metric), max_tokens=9) for _ in range(2))
    assert hit.cached == SHARED
    same(hit, miss)


def test_logprobs_of_the_prompt(folder):
    """They need the logits of all of it, so nothing is read, but what is made is shared."""
    engine = sharing(folder)
    told = []
    for _ in range(2):
        engine.request("one", agent(1), wish(), prompt_logprobs=0, skip_reading_prefix_cache=True)
        while engine.core.has_work:
            for output in engine.core.step().outputs:
                told += [p.logprobs[0] for p in output.prompt_logprobs or ()]
                assert output.num_cached_tokens == 0
    events = [e for e in engine.events if e.tokens == SHARED][:1]
    logprobs = oracle(folder, agent(1), events)[:-1]
    expected = logprobs.gather(1, torch.tensor(agent(1)[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(told), expected.repeat(2), atol=1e-4, rtol=0)
    assert engine.one(agent(1), wish()).sources == {"compressed": SHARED}


@pytest.mark.parametrize(
    ("metric", "settings", "size", "once", "kernels"),
    [
        ("kvc", {"aggregation": "L2-avg", "window": 8}, 4, False, KERNELS[-1]),
        ("kvc-full", {"aggregation": "L1-avg", "block": 20}, 8, False, "reference"),
        ("kvc", {"only_prefill": True}, 16, True, "reference"),
        ("snapkv", {"value_norm": True, "window": 8}, 3, False, KERNELS[-1]),
        ("h2o", {}, 1, True, "reference"),
    ],
)
@pytest.mark.parametrize("chunk", [7, 16])
def test_settings_and_chunks(folder, metric, settings, size, once, kernels, chunk):
    given = CompressionSettings(share=True, **settings)
    params = wish(metric=metric, compress_once=once)
    options = {"block_size": size, "kernels": kernels}
    expected = sharing(folder, given, **options).one(agent(2), params, max_tokens=16)
    engine = sharing(folder, given, max_num_batched_tokens=chunk, **options)
    close(engine.one(agent(2), params, max_tokens=16), expected)
    hit = engine.one(agent(2), params, max_tokens=16)
    assert hit.sources == {"compressed": SHARED}
    close(hit, expected)
    if once:
        assert hit.stats.times == 2, "after the prefix and after the prompt, not while decoding"


def test_what_makes_another_key(folder):
    engine = sharing(folder)
    engine.one(agent(1), wish(), salt="a")
    other = [*SYSTEM[:-1], (SYSTEM[-1] + 1) % 96, *prompt(OWN, 1)]
    for tokens, params, salt in (
        (agent(1), wish(), None),
        (agent(1), wish(), "b"),
        (agent(1), wish(max_cache_tokens=16), "a"),
        (agent(1), wish(max_cache_tokens=None, target_compression_rate=0.3), "a"),
        (agent(1), wish(sinks=1), "a"),
        (agent(1), wish(protected_spans=((3, 5),)), "a"),
        (agent(1), wish(protected_window_size=5), "a"),
        (agent(1), wish(metric_collection_buffer_size=2), "a"),
        (agent(1), wish(metric="snapkv"), "a"),
        (agent(1), wish(budget_rule="uniform"), "a"),
        (agent(1), wish(head_floor=0.2), "a"),
        (agent(1), wish(shared_prefix_tokens=SHARED - 1), "a"),
        (agent(1), wish(shared_prefix_tokens=SHARED + 1), "a"),
        (other, wish(), "a"),
    ):
        ran = engine.one(tokens, params, salt=salt, max_tokens=3)
        assert "compressed" not in ran.sources
    # What comes behind the prefix, and whether it is compressed again, makes none.
    for tokens, params in (
        (agent(9, 3), wish()),
        (agent(1), wish(compress_once=True)),
        (agent(1), wish(protected_spans=((SHARED, SHARED + 3),))),
    ):
        ran = engine.one(tokens, params, salt="a", max_tokens=3)
        assert ran.sources == {"compressed": SHARED}
    skipped = engine.one(agent(1), wish(), salt="a", skip_reading_prefix_cache=True)
    assert skipped.sources == {}


def contents(engine: Engine) -> dict[bytes, str]:
    arena = engine.runner.kv
    return {
        key: hashlib.sha256(arena[block].numpy().tobytes()).hexdigest()
        for key, block in engine.kv.index.items()
    }


def test_the_ordinary_cache_has_the_prefix_and_nothing_behind_it(folder):
    """Its bytes are those of an engine that compresses nothing; a snapshot is never found there."""
    plain = Engine(folder, compression=False)
    plain.one(agent(1), max_tokens=8)
    engine = sharing(folder)
    for seed in (1, 2, 1):
        engine.one(agent(seed), wish(), max_tokens=8)
    mine, theirs = contents(engine), contents(plain)
    assert len(mine) == SHARED // 4
    assert mine.items() <= theirs.items()
    assert engine.kv.lookup(agent(1), None, 1000) == SHARED // 4 * 4
    dense = engine.one(agent(1), max_tokens=8)
    assert dense.sources == {"device": SHARED // 4 * 4}
    close_to = Engine(folder, compression=False).one(agent(1), max_tokens=8)
    assert dense.tokens == close_to.tokens


def test_without_a_prefix_the_flag_changes_nothing(folder):
    params = wish(shared_prefix_tokens=None)
    off, on = Engine(folder), sharing(folder)
    same(on.one(agent(1), params), off.one(agent(1), params))
    assert contents(on) == contents(off)
    assert len(snapshots(on)) == 0
    assert off.kv._snapshots is None


def test_a_prefix_that_is_kept_whole_is_an_ordinary_one(folder):
    engine = sharing(folder)
    params = wish(max_cache_tokens=44)
    expected = Engine(folder).one(agent(1), wish(max_cache_tokens=44, shared_prefix_tokens=None))
    for _ in range(2):
        ran = engine.one(agent(1), params)
        assert ran.tokens == expected.tokens
        assert "compressed" not in ran.sources
    assert len(snapshots(engine)) == 0


@pytest.mark.parametrize("options", [{}, SWAP], ids=["again", "swap"])
@pytest.mark.parametrize("hit", [False, True])
def test_preempted_at_any_moment(folder, options, hit):
    expected = sharing(folder).one(agent(2), wish(), max_tokens=14)
    for after in (1, 2, 3, 4, 5, 7, 10):
        engine = sharing(folder, max_num_batched_tokens=16, **options)
        if hit:
            engine.one(agent(1), wish(), max_tokens=2)
        engine.request("one", agent(2), wish(), max_tokens=14)
        told = [t for _ in range(after) for o in engine.core.step().outputs for t in o.token_ids]
        scheduler = engine.core.scheduler
        scheduler._preempt(scheduler.running[0])
        scheduler.check()
        ran = engine.run()["one", 0]
        assert ran.preemptions == 1
        assert told + ran.tokens == expected.tokens
        rest = torch.stack(expected.logprobs[len(told) :])
        torch.testing.assert_close(torch.stack(ran.logprobs), rest, atol=1e-5, rtol=0)
        assert ran.stats == expected.stats
        snapshots(engine).clear()
        assert engine.kv.pool.held == 0


def test_aborts_at_any_moment_leave_nothing_behind(folder):
    for steps in range(1, 14):
        engine = sharing(folder, max_num_batched_tokens=16, num_gpu_blocks_override=80)
        engine.request("gone", agent(1), wish(), max_tokens=8, n=2, temperature=1.0)
        engine.request("stays", agent(2), wish(), max_tokens=8)
        for _ in range(steps):
            engine.core.step()
        engine.core.abort(["gone"])
        engine.core.check()
        engine.run()
        assert not snapshots(engine)._begun
        assert engine.kv.pool.held == snapshots(engine).held > 0


def test_several_outputs_begin_with_one_snapshot(folder):
    sampling = {"temperature": 1.0, "max_tokens": 10}
    engine = sharing(folder)
    engine.request("three", agent(1), wish(), n=3, seed=5, **sampling)
    ran = engine.run()
    for index in range(3):
        close(
            ran["three", index], sharing(folder).one(agent(1), wish(), seed=5 + index, **sampling)
        )
        assert ran["three", index].sources == ({"compressed": SHARED} if index else {})


def test_snapshots_give_way_to_sequences(folder):
    """They go, the longest unused first, before anybody is preempted."""
    engine = sharing(folder, num_gpu_blocks_override=40, max_model_len=160)
    prefixes = [prompt(SHARED, seed) for seed in range(4)]
    for tokens in prefixes:
        engine.one([*tokens, 1, 2, 3], wish(), max_tokens=2)
    held = snapshots(engine).held
    assert 0 < held <= 10
    assert len(snapshots(engine)) == 3, "no more than a quarter of the memory"
    engine.request("large", prompt(139, 9), max_tokens=20)
    for _ in range(40):
        assert not engine.core.step().stats.preemptions
        engine.core.check()
    assert not engine.core.has_work
    assert len(snapshots(engine)) == 0
    assert engine.one(prefixes[-1] + [1, 2], wish(), max_tokens=2).sources == {}


def test_the_latest_used_stays(folder):
    engine = sharing(folder, num_gpu_blocks_override=40, max_model_len=160)
    first = [*prompt(SHARED, 0), 1, 2]
    engine.one(first, wish(), max_tokens=2)
    for seed in range(1, 6):
        engine.one([*prompt(SHARED, seed), 3], wish(), max_tokens=2)
        assert engine.one(first, wish(), max_tokens=2).sources == {"compressed": SHARED}


def test_reset_and_sleep_forget_them(folder):
    engine = sharing(folder)
    for forget in (engine.core.reset_prefix_cache, lambda: engine.core.sleep(1)):
        engine.one(agent(1), wish(), max_tokens=2)
        assert snapshots(engine).held
        forget()
        assert snapshots(engine).held == engine.kv.pool.held == 0
        engine.core.wake_up()
        engine.core.check()
        assert engine.one(agent(1), wish(), max_tokens=2).cached == 0


def test_beside_others_in_one_batch(folder):
    engine = sharing(folder, max_num_batched_tokens=30)
    engine.one(agent(1), wish(), max_tokens=2)
    expected = sharing(folder).one(agent(2), wish(), max_tokens=16)
    engine.request("dense", prompt(30, 7), max_tokens=20)
    engine.request("own", prompt(40, 8), wish(shared_prefix_tokens=None), max_tokens=20)
    engine.request("mine", agent(2), wish(), max_tokens=16)
    engine.request("other", agent(3), wish(), max_tokens=9)
    ran = engine.run()
    close(ran["mine", 0], expected)
    assert ran["other", 0].sources == ran["mine", 0].sources == {"compressed": SHARED}


def together(folder, **options) -> tuple[Engine, dict[str, Ran]]:
    """Four agents at once; the last has its prefix for itself."""
    engine, params = sharing(folder, **options), wish(metric="kvc-full")
    for seed in (1, 2, 3):
        engine.request(f"r{seed}", agent(seed), params, max_tokens=9)
    engine.request("alone", prompt(SHARED + OWN, 9), params, max_tokens=9)
    return engine, {name: ran for (name, _), ran in engine.run().items()}


def test_who_comes_together_waits_for_the_first_to_make_it(folder):
    """As for blocks that another computes, where the order looks at what is cached."""
    engine, ran = together(folder, enable_prefix_aware_scheduling=True)
    computed = sum(int(plan.counts.sum()) for plan in engine.plans)
    assert ran["r1"].sources == ran["alone"].sources == {}
    assert ran["r2"].sources == ran["r3"].sources == {"compressed": SHARED}
    assert computed == 4 * (SHARED + OWN + 8) - 2 * SHARED
    _, by_age = together(folder)
    assert by_age["r2"].sources == {}, "without it nobody waits"
    for name in ran:
        close(ran[name], by_age[name])


def test_nobody_waits_for_what_is_too_large_to_keep(folder):
    """A quarter of the memory is 10 blocks; 40 KVs a head may take 11."""
    options = {
        "num_gpu_blocks_override": 43,
        "max_model_len": 128,
        "long_prefill_token_threshold": 8,
    }
    engine = sharing(folder, enable_prefix_aware_scheduling=True, **options)
    large = wish(max_cache_tokens=40, metric="kvc-full")
    for seed in (1, 2):
        engine.request(f"r{seed}", agent(seed), large, max_tokens=3)
    engine.core.step()
    assert len(engine.core.scheduler.running) == 2
    engine.run()


def test_a_compressed_prefix_that_is_there_goes_first(folder):
    """By what is cached, a hit of this kind counts as one on blocks does."""
    engine = sharing(folder, enable_prefix_aware_scheduling=True, max_num_seqs=1)
    engine.one(agent(1), wish(), max_tokens=2)
    engine.request("old", SYSTEM[:24] + prompt(9, 7), max_tokens=2)
    engine.request("hit", agent(2), wish(), max_tokens=2)
    engine.core.step()
    assert [s.request.request_id for s in engine.core.scheduler.running] == ["hit"]
    engine.run()
