"""The prefix metrics against a count by hand, their bounds, and the sample of blocks' lives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm import LLM, SamplingParams
from vllm.core.request import EngineRequest
from vllm.core.retention import CacheHints
from vllm.observe import prefix_metrics
from vllm.observe.prefix_metrics import PrefixMetrics
from vllm.observe.residency import USES, Residency

ARGS: dict[str, Any] = {
    "simulator": "random",
    "simulator_clock": "virtual",
    "num_gpu_blocks_override": 40,
    "max_model_len": 256,
    "block_size": 8,
    "skip_tokenizer_init": True,
}
ONE = SamplingParams(max_tokens=1)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return rows(tmp_path / "out_requests.jsonl"), rows(tmp_path / "out_blocks.jsonl")


def test_what_is_written(tmp_path: Path) -> None:
    """Equal tokens at different depths are different blocks; the last partial block is none."""
    llm = LLM(prefix_metrics=str(tmp_path / "out"), **ARGS)
    block = list(range(8))
    prompts = [block + block + [9], block + [9] * 3, [3] * 5]
    told = [{"workload": "qa", "prefix_mode": "multi"}, {"workload": "qa"}, {}]
    for prompt, hints in zip(prompts, told, strict=True):
        llm.generate({"prompt_token_ids": prompt, **hints}, ONE, use_tqdm=False)
    assert llm.dump_prefix_metrics() == {
        "requests": 3,
        "blocks": 2,
        "lost_requests": 0,
        "lost_blocks": 0,
    }
    requests, blocks = files(tmp_path)
    assert requests == [
        {
            "request_id": "0",
            "mode": "multi",
            "total_tokens": 17,
            "reused_tokens": 0,
            "workload": "qa",
            "reuse_fraction": 0.0,
        },
        {
            "request_id": "1",
            "mode": "single",
            "total_tokens": 11,
            "reused_tokens": 8,
            "workload": "qa",
            "reuse_fraction": 8 / 11,
        },
        {
            "request_id": "2",
            "mode": "single",
            "total_tokens": 5,
            "reused_tokens": 0,
            "workload": "unknown",
            "reuse_fraction": 0.0,
        },
    ]
    second, first = blocks  # the longest unused first
    assert first["depth"] == 0 and first["parent"] is None
    assert second["depth"] == 1 and second["parent"] == first["block_key"]
    assert (first["hits"], first["cached_hits"]) == (1, 1)
    assert (second["hits"], second["reuse_gaps"]) == (0, [])
    early, late = first["use_times"]
    assert early == 0.0 < late and first["reuse_gaps"] == [late - early]
    llm.llm_engine.core.check()
    llm.generate({"prompt_token_ids": prompts[0]}, ONE, use_tqdm=False)
    llm.shutdown()
    assert len(files(tmp_path)[0]) == 4, "written at the end too"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_originals_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIX_MODE", "multi")
    monkeypatch.setenv("PREFIX_WORKLOAD", "chat_multi")
    llm = LLM(prefix_metrics=str(tmp_path / "out"), **ARGS)
    said = {"workload": "qa", "prefix_mode": "single"}
    llm.generate([{"prompt_token_ids": [5]}, {"prompt_token_ids": [5], **said}], ONE)
    llm.dump_prefix_metrics()
    got = [(row["mode"], row["workload"]) for row in files(tmp_path)[0]]
    assert got == [("multi", "chat_multi"), ("single", "qa")]


def test_a_hit_in_theory_is_not_one_in_this_cache(tmp_path: Path) -> None:
    """What was evicted in between counts as a use again, and was not served."""
    llm = LLM(prefix_metrics=str(tmp_path / "out"), **ARGS)
    for token in (1, 2, 3, 1):  # 25 of 40 blocks each
        llm.generate({"prompt_token_ids": [token] * 200}, ONE, use_tqdm=False)
    llm.dump_prefix_metrics()
    requests, blocks = files(tmp_path)
    again = [b for b in blocks if b["hits"]]
    assert len(again) == 25 and {b["cached_hits"] for b in again} == {0}
    assert requests[-1]["reused_tokens"] == 0


def test_without_caching_there_are_requests_and_no_blocks(tmp_path: Path) -> None:
    llm = LLM(prefix_metrics=str(tmp_path / "out"), enable_prefix_caching=False, **ARGS)
    llm.generate([{"prompt_token_ids": [5] * 30}] * 2, ONE, use_tqdm=False)
    counts = llm.dump_prefix_metrics()
    assert (counts["requests"], counts["blocks"]) == (2, 0)


def test_a_request_of_several_outputs_and_a_preempted_one_count_once(tmp_path: Path) -> None:
    llm = LLM(prefix_metrics=str(tmp_path / "out"), **ARGS)
    params = SamplingParams(n=3, max_tokens=60)
    prompts = [{"prompt_token_ids": [i] * 40} for i in range(6)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert sum(o.metrics.num_preemptions for o in outputs if o.metrics) > 0
    assert llm.dump_prefix_metrics()["requests"] == 6
    assert {len(b["use_times"]) for b in files(tmp_path)[1]} == {1}


def test_bad_prefixes_and_no_prefix_are_told(tmp_path: Path) -> None:
    for bad in (str(tmp_path / "no" / "out"), "", "/"):
        with pytest.raises(ValueError, match="prefix_metrics"):
            LLM(prefix_metrics=bad, **ARGS)
    with pytest.raises(ValueError, match="prefix_metrics"):
        LLM(**ARGS).dump_prefix_metrics()
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="kv_cache_metrics_sample"):
            LLM(kv_cache_metrics_sample=share, **ARGS)


CHAINS = st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=40)


def keys_of(chain: list[int]) -> list[bytes]:
    return [bytes(chain[: i + 1]).ljust(31) + b"k" for i in range(len(chain))]


@settings(max_examples=100)
@given(chains=CHAINS, most=st.integers(1, 12), uses=st.integers(4, 30))
def test_bounds_hold_and_the_longest_unused_goes(
    tmp_path_factory: pytest.TempPathFactory, chains: list[list[int]], most: int, uses: int
) -> None:
    """Against a twin that remembers everything."""
    folder = tmp_path_factory.mktemp("bounds")
    limits = {"max_requests": most, "max_blocks": most, "max_uses": uses}
    metrics = PrefixMetrics(str(folder / "out"), 100.0, **limits)
    twin: dict[bytes, list[float]] = {}
    for number, chain in enumerate(chains):
        request = EngineRequest(
            request_id=str(number),
            prompt_token_ids=[0] * 9,
            params=ONE,
            max_tokens=1,
            arrival=0.0,
            hints=CacheHints(workload="w"),
        )
        metrics.admitted(request, 0, keys_of(chain), 0, 100.0 + number)
        metrics.check()
        for key in keys_of(chain):
            twin[key] = [*twin.pop(key, []), float(number)]
        while len(twin) > most or sum(map(len, twin.values())) > uses:
            del twin[next(iter(twin))]
    counts = metrics.dump()
    requests, blocks = rows(folder / "out_requests.jsonl"), rows(folder / "out_blocks.jsonl")
    assert [row["request_id"] for row in requests] == [str(i) for i in range(len(chains))][-most:]
    assert counts["lost_requests"] == max(0, len(chains) - most)
    assert [(b["block_key"], b["use_times"]) for b in blocks] == [
        (key.hex(), times) for key, times in twin.items()
    ]


def test_a_block_that_is_used_for_ever_keeps_its_latest_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_metrics, "MAX_USE_TIMES", 5)
    metrics = PrefixMetrics(str(tmp_path / "out"), 0.0)
    request = EngineRequest(
        request_id="a", prompt_token_ids=[0] * 9, params=ONE, max_tokens=1, arrival=0.0
    )
    for time in range(12):
        metrics.admitted(request, 0, [b"k" * 32], 1 if time else 0, float(time))
    metrics.check()
    metrics.dump()
    [block] = rows(tmp_path / "out_blocks.jsonl")
    assert block["use_times"] == [7.0, 8.0, 9.0, 10.0, 11.0] and block["hits"] == 11


def test_what_comes_from_a_tier_after_the_start_counts_as_reused(tmp_path: Path) -> None:
    metrics = PrefixMetrics(str(tmp_path / "out"), 0.0)
    request = EngineRequest(
        request_id="a", prompt_token_ids=[0] * 20, params=ONE, max_tokens=1, arrival=0.0
    )
    keys = [bytes([i]) * 32 for i in range(3)]
    metrics.admitted(request, 0, keys, 0, 1.0)
    told = metrics.admitted(request, 4, keys, 1, 2.0)
    metrics.saved(told, [*keys[1:], b"forgotten".ljust(32)], 4)
    metrics.check()
    metrics.dump()
    requests, blocks = files(tmp_path)
    assert [row["reused_tokens"] for row in requests] == [0, 16]
    assert [row["cached_hits"] for row in blocks] == [1, 1, 1]


# ---- the lives of blocks ------------------------------------------------------------------------


def test_lifetime_idle_and_gaps() -> None:
    residency = Residency(1.0)
    key = b"k" * 32
    residency.published(key, 10.0)
    for time in (12.0, 15.0, 19.0, 24.0, 30.0):
        residency.used(key, time)
    residency.evicted(key, 100.0)
    told = residency.take()
    assert (told.lifetimes, told.idles) == ([90.0], [70.0])
    assert told.gaps == [4.0, 5.0, 6.0] and len(told.gaps) == USES - 1
    assert residency.take().lifetimes == [] and len(residency) == 0
    residency.evicted(key, 101.0)
    residency.used(key, 101.0)
    assert residency.take().lifetimes == []


def test_the_keys_choose_the_sample() -> None:
    keys = [(i * 2654435761 % 2**32).to_bytes(4, "little") * 8 for i in range(10_000)]
    residency = Residency(0.1)
    for key in keys:
        residency.published(key, 0.0)
    assert 900 < len(residency) < 1100


def histogram(llm: LLM, name: str) -> Any:
    return next(m for m in llm.get_metrics() if m.name == f"vllm:{name}")


def test_the_histograms_are_the_engines() -> None:
    """All blocks sampled: a lifetime for each eviction, and none without the flag."""
    for flag in (True, False):
        llm = LLM(kv_cache_metrics=flag, kv_cache_metrics_sample=1.0, **ARGS)
        evicted: list[int] = []
        pool = llm.llm_engine.core.scheduler.kv.pool
        told = pool.on_evict
        pool.on_evict = lambda keys, told=told, n=evicted: (n.append(len(keys)), told(keys))  # type: ignore[misc, assignment]
        for token in (1, 1, 2, 3, 1):
            llm.generate({"prompt_token_ids": [token] * 200}, ONE, use_tqdm=False)
        assert sum(evicted) > 25
        lifetimes = histogram(llm, "kv_block_lifetime_seconds")
        assert lifetimes.count == (sum(evicted) if flag else 0)
        assert histogram(llm, "kv_block_idle_before_evict_seconds").count == lifetimes.count
        assert (histogram(llm, "kv_block_reuse_gap_seconds").count > 0) == flag
