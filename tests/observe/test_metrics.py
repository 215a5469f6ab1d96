from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from vllm.core.request import EngineStats, RequestEnd, TierStats
from vllm.observe.metrics import FINISH_REASONS, Metrics, one_two_five
from vllm.observe.reader import Counter, Gauge, Histogram

COUNTERS = """
    kv_load_decisions kv_tier_bytes_loaded kv_tier_bytes_stored kv_tier_load_seconds
    kv_tier_predicted_seconds kv_tier_deadline_misses kv_tier_failures kv_tier_corrupt
    kv_tier_dropped_stores
    external_prefix_cache_queries external_prefix_cache_hits
    prefix_cache_queries prefix_cache_hits prompt_tokens prompt_tokens_by_source
    prompt_tokens_cached prompt_tokens_cached_by_source generation_tokens num_preemptions
    request_success admission_rejections kv_compressions kv_compression_dropped_kvs
"""
GAUGES = """
    num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc
    gpu_prefix_cache_hit_rate cpu_prefix_cache_hit_rate disk_prefix_cache_hit_rate
    shared_prefix_cache_hit_rate kv_tier_capacity kv_tier_blocks kv_tier_queued
    engine_sleep_state
"""
HISTOGRAMS = """
    time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
    e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds
    request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens
    request_generation_tokens request_max_num_generation_tokens request_params_n
    request_params_max_tokens iteration_tokens_total request_num_preemptions
    request_prefill_kv_computed_tokens kv_block_lifetime_seconds
    kv_block_idle_before_evict_seconds kv_block_reuse_gap_seconds
"""


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("demo")


def value(metrics: Metrics, name: str, **labels: str) -> float:
    wanted = {"model_name": "demo", "engine": "0"} | labels
    found = metrics.registry.get_sample_value(f"vllm:{name}", wanted)
    assert found is not None, f"there is no sample {name} {labels}"
    return found


def finish(metrics: Metrics, reason: str = "stop", n: int = 1, tokens: int = 11) -> None:
    end = RequestEnd(
        reason=reason,
        prompt_tokens=100,
        generation_tokens=tokens,
        longest_output=-(-tokens // n),
        cached_tokens=64,
        e2e=3.0,
        queue=0.5,
        prefill=0.5,
        decode=2.0,
        n=n,
        max_tokens=50,
        preemptions=1,
    )
    metrics.finished(end)


def test_compressions(metrics: Metrics) -> None:
    metrics.step(EngineStats(compressions=2, dropped_kvs=300))
    metrics.step(EngineStats(compressions=1, dropped_kvs=50))
    assert value(metrics, "kv_compressions_total") == 3
    assert value(metrics, "kv_compression_dropped_kvs_total") == 350


def test_compressed_prefixes_are_a_source_of_their_own(metrics: Metrics) -> None:
    metrics.step(EngineStats(compressed_prefix_hits=40, computed_prompt_tokens=10))
    assert value(metrics, "prompt_tokens_cached_by_source_total", source="compressed") == 40
    assert value(metrics, "prompt_tokens_cached_total") == 40
    assert value(metrics, "prompt_tokens_total") == 50
    assert value(metrics, "prompt_tokens_by_source_total", source="local_cache_hit") == 40
    assert value(metrics, "prefix_cache_hits_total") == 0


def test_hit_rates_and_tiers(metrics: Metrics) -> None:
    """The core tells totals of each tier; rates are shares of all tokens that were looked up."""
    tier = TierStats("host", capacity=9, blocks=3, queued=1, bytes_loaded=100, corrupt=2)
    metrics.step(
        EngineStats(
            prefix_requests=1,
            prefix_queries=100,
            prefix_hits=25,
            tier_hits={"host": 50},
            chose_load=2,
            chose_compute=1,
            tiers=[tier],
        )
    )
    tier.bytes_loaded, tier.blocks = 130, 4
    metrics.step(EngineStats(prefix_requests=1, prefix_queries=100, tiers=[tier]))
    assert value(metrics, "gpu_prefix_cache_hit_rate") == 0.125
    assert value(metrics, "cpu_prefix_cache_hit_rate") == 0.25
    assert value(metrics, "disk_prefix_cache_hit_rate") == 0
    assert value(metrics, "kv_tier_bytes_loaded_total", tier="host") == 130
    assert value(metrics, "kv_tier_corrupt_total", tier="host") == 2
    assert value(metrics, "kv_tier_blocks", tier="host") == 4
    assert value(metrics, "kv_tier_capacity", tier="disk") == 0
    assert value(metrics, "kv_load_decisions_total", choice="load") == 2


def test_every_sample_is_there_before_there_is_traffic(metrics: Metrics) -> None:
    told = metrics.read()
    names = {type(m): {x.name for x in told if type(x) is type(m)} for m in told}
    assert names[Counter] == {f"vllm:{name}" for name in COUNTERS.split()}
    assert names[Gauge] == {f"vllm:{name}" for name in GAUGES.split()}
    assert names[Histogram] == {f"vllm:{name}" for name in HISTOGRAMS.split()}
    for metric in told:
        assert metric.labels["model_name"] == "demo"
        assert metric.labels["engine"] == "0"
        if isinstance(metric, Histogram):
            assert (metric.count, metric.sum) == (0, 0.0)
            assert list(metric.buckets)[-1] == "+Inf"
        else:
            assert isinstance(metric, (Counter, Gauge))
            assert metric.value == (metric.labels.get("sleep_state") == "awake")
    for reason in FINISH_REASONS:
        assert value(metrics, "request_success_total", finished_reason=reason) == 0
    assert value(metrics, "prompt_tokens_by_source_total", source="local_compute") == 0


def test_two_engines_do_not_share_counts() -> None:
    first, second = Metrics("demo"), Metrics("demo")
    first.step(EngineStats(generated_tokens=5))
    assert value(first, "generation_tokens_total") == 5
    assert value(second, "generation_tokens_total") == 0


def test_steps_add_up_and_the_identities_hold(metrics: Metrics) -> None:
    stats = EngineStats(
        running=3,
        waiting=2,
        kv_usage=0.25,
        prefix_queries=100,
        prefix_hits=64,
        preemptions=1,
        computed_prompt_tokens=36,
        generated_tokens=7,
        step_tokens=[40, 3],
    )
    metrics.step(stats)
    metrics.step(EngineStats(computed_prompt_tokens=10, running=1))
    assert value(metrics, "num_requests_running") == 1
    assert value(metrics, "num_requests_waiting") == 0
    assert value(metrics, "prefix_cache_queries_total") == 100
    hits = value(metrics, "prefix_cache_hits_total")
    assert hits == 64 == value(metrics, "prompt_tokens_cached_total")
    assert value(metrics, "prompt_tokens_cached_by_source_total", source="device") == hits
    sources = ("local_compute", "local_cache_hit", "external_kv_transfer")
    by_source = [value(metrics, "prompt_tokens_by_source_total", source=s) for s in sources]
    assert by_source == [46, 64, 0]
    assert value(metrics, "prompt_tokens_total") == sum(by_source)
    assert value(metrics, "generation_tokens_total") == 7
    assert value(metrics, "num_preemptions_total") == 1
    assert value(metrics, "iteration_tokens_total_count") == 2
    assert value(metrics, "iteration_tokens_total_sum") == 43


def test_gauges_are_the_last_ones(metrics: Metrics) -> None:
    metrics.step(EngineStats(running=3, waiting=2, kv_usage=0.25))
    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "num_requests_waiting") == 2
    assert value(metrics, "num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(metrics, "kv_cache_usage_perc") == 0.25


def test_a_finished_request(metrics: Metrics) -> None:
    finish(metrics)
    assert value(metrics, "request_success_total", finished_reason="stop") == 1
    sums = {
        "request_prompt_tokens": 100,
        "request_generation_tokens": 11,
        "request_max_num_generation_tokens": 11,
        "request_prefill_kv_computed_tokens": 36,
        "e2e_request_latency_seconds": 3.0,
        "request_queue_time_seconds": 0.5,
        "request_inference_time_seconds": 2.5,
        "request_prefill_time_seconds": 0.5,
        "request_decode_time_seconds": 2.0,
        "request_time_per_output_token_seconds": 0.2,
        "request_params_n": 1,
        "request_params_max_tokens": 50,
        "request_num_preemptions": 1,
    }
    for name, expected in sums.items():
        assert value(metrics, f"{name}_sum") == pytest.approx(expected), name
        assert value(metrics, f"{name}_count") == 1


def test_several_outputs_and_none(metrics: Metrics) -> None:
    finish(metrics, n=2, tokens=22)
    assert value(metrics, "request_max_num_generation_tokens_sum") == 11
    assert value(metrics, "request_time_per_output_token_seconds_sum") == pytest.approx(0.2)
    finish(metrics, "abort", tokens=0)
    finish(metrics, tokens=1)
    assert value(metrics, "request_time_per_output_token_seconds_count") == 1


def test_times_and_refusals(metrics: Metrics) -> None:
    metrics.first_token(0.3)
    metrics.inter_token(0.2)
    metrics.inter_token(0.4, 2)
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(0.3)
    assert value(metrics, "inter_token_latency_seconds_count") == 3
    assert value(metrics, "inter_token_latency_seconds_sum") == pytest.approx(0.6)
    metrics.rejected("max_num_queued_reqs")
    metrics.rejected("whatever")
    rejections = value(metrics, "admission_rejections_total", reason="max_num_queued_reqs")
    assert rejections == 1


def test_labels_are_never_made_by_traffic(metrics: Metrics) -> None:
    before = len(metrics.read())
    finish(metrics, "a reason that does not exist")
    metrics.rejected("a reason that does not exist")
    assert len(metrics.read()) == before
    assert value(metrics, "request_success_total", finished_reason="error") == 1


def test_the_caches_configuration_is_labels(metrics: Metrics) -> None:
    metrics.cache_config({"block_size": "16", "num_gpu_blocks": "10"})
    metrics.cache_config({"block_size": "16", "num_gpu_blocks": "20"})
    text = generate_latest(metrics.registry).decode()
    line = 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="20"} 1.0'
    assert line in text
    assert text.count("vllm:cache_config_info{") == 1


def test_histograms_are_read_with_cumulative_buckets(metrics: Metrics) -> None:
    metrics.first_token(0.003)
    metrics.first_token(0.03)
    [ttft] = [m for m in metrics.read() if m.name == "vllm:time_to_first_token_seconds"]
    assert isinstance(ttft, Histogram)
    assert (ttft.buckets["0.005"], ttft.buckets["0.04"], ttft.buckets["+Inf"]) == (1, 2, 2)


def test_bucket_bounds() -> None:
    assert one_two_five(100) == [1, 2, 5, 10, 20, 50, 100]
    assert one_two_five(4096)[-1] == 2000
    assert one_two_five(1) == [1]
