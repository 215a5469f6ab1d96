"""The engine's Prometheus metrics, by vLLM's names.

All samples exist at 0 before there is traffic, so that rates and alerts work from the start. Every
count comes from the same step statistics, so these hold at any time:

    prompt_tokens = sum(prompt_tokens_by_source)
    sum(prompt_tokens_cached_by_source) = prompt_tokens_cached
                                        = prefix_cache_hits + external_prefix_cache_hits
                                          + those of shared compressed prefixes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm.core.request import EngineStats, RequestEnd, TierStats
from vllm.observe import reader

ENGINE = "0"
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHE_SOURCES = ("device", "host", "disk", "shared")  # and compressed
HIT_RATES = {"device": "gpu", "host": "cpu", "disk": "disk", "shared": "shared"}
TIERS = CACHE_SOURCES[1:]
TIER_GAUGES = {
    "capacity": "Blocks that the tier can hold.",
    "blocks": "Blocks that the tier holds.",
    "queued": "Transfers that have not ended.",
}
TIER_COUNTERS = {
    "bytes_loaded": "Bytes that came up from the tier.",
    "bytes_stored": "Bytes that went down to the tier.",
    "load_seconds": "Seconds that loads took.",
    "predicted_seconds": "Seconds that loads were expected to take when they were chosen.",
    "deadline_misses": "Loads that took too long and were given up.",
    "failures": "Transfers in which the tier failed.",
    "corrupt": "Blobs whose header or checksum was wrong; they were deleted.",
    "dropped_stores": "Blocks that were not stored as the queue was full.",
}
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")

# Bounds of buckets, in seconds and in counts.
_TTFT: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75)
_TTFT += (1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_PER_TOKEN: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
_PER_TOKEN += (0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30)
_REQUEST += (40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_BLOCK = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_N = (1, 2, 5, 10, 20)
_PREEMPTIONS = (0, 1, 2, 5, 10, 20)


class Metrics:
    """Counts what the engine does. It is the engine's `Recorder`."""

    def __init__(
        self,
        model_name: str,
        registry: CollectorRegistry | None = None,
        *,
        max_model_len: int = 32768,
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": ENGINE}
        self._info: Gauge | None = None

        self._running = self._gauge("num_requests_running", "Requests that are computed now.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait.")
        by_reason = self._many(
            Gauge, "num_requests_waiting_by_reason", "Requests that wait.", "reason",
            ("capacity", "deferred"),
        )  # fmt: skip
        self._waiting_for_capacity = by_reason["capacity"]
        self._usage = self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache that running requests hold; 1 is all."
        )

        self._sleep = self._many(
            Gauge, "engine_sleep_state", "1 for the state that the engine is in.",
            "sleep_state", SLEEP_STATES,
        )  # fmt: skip
        self._sleep["awake"].set(1)
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the cache.")
        self._external_queries = self._counter(
            "external_prefix_cache_queries", "Prompt tokens that the device did not have."
        )
        self._external_hits = self._counter(
            "external_prefix_cache_hits", "Prompt tokens found in tiers below the device."
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens taken in.")
        self._by_source = self._many(
            Counter, "prompt_tokens_by_source", "Prompt tokens by where their KVs came from.",
            "source", PROMPT_SOURCES,
        )  # fmt: skip
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens that were cached.")
        self._cached_by_source = self._many(
            Counter, "prompt_tokens_cached_by_source", "Cached prompt tokens by tier.",
            "source", (*CACHE_SOURCES, "compressed"),
        )  # fmt: skip
        self._hit_rates = {
            tier: self._gauge(
                f"{name}_prefix_cache_hit_rate",
                f"Share of all looked-up prompt tokens that came from the {tier} tier.",
            )
            for tier, name in HIT_RATES.items()
        }
        self._looked_up = 0
        self._found = dict.fromkeys(CACHE_SOURCES, 0)
        self._choices = self._many(
            Counter, "kv_load_decisions", "Cached runs below the device, by what was chosen.",
            "choice", ("load", "compute", "both"),
        )  # fmt: skip
        self._tier_gauges = {
            name: self._many(Gauge, f"kv_tier_{name}", told, "tier", TIERS)
            for name, told in TIER_GAUGES.items()
        }
        self._tier_counters = {
            name: self._many(Counter, f"kv_tier_{name}", told, "tier", TIERS)
            for name, told in TIER_COUNTERS.items()
        }
        self._tier_before: dict[tuple[str, str], float] = {}
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._preemptions = self._counter("num_preemptions", "Requests put back into the queue.")
        self._compressions = self._counter(
            "kv_compressions", "Times that a sequence was compressed."
        )
        self._dropped_kvs = self._counter(
            "kv_compression_dropped_kvs", "KVs that compressions dropped, over layers and heads."
        )
        self._finished = self._many(
            Counter, "request_success", "Requests that ended.", "finished_reason", FINISH_REASONS
        )
        self._rejections = self._many(
            Counter, "admission_rejections", "Requests refused as too many waited.",
            "reason", REJECTIONS,
        )  # fmt: skip

        lengths = one_two_five(max_model_len)
        seconds = self._histogram
        self._ttft = seconds("time_to_first_token_seconds", "Until the first token.", _TTFT)
        self._itl = seconds("inter_token_latency_seconds", "From token to token.", _PER_TOKEN)
        self._tpot = seconds(
            "request_time_per_output_token_seconds", "A request's mean between tokens.", _PER_TOKEN
        )
        self._e2e = seconds("e2e_request_latency_seconds", "From arrival to end.", _REQUEST)
        self._queue = seconds("request_queue_time_seconds", "Waiting.", _REQUEST)
        self._inference = seconds("request_inference_time_seconds", "Running.", _REQUEST)
        self._prefill = seconds(
            "request_prefill_time_seconds", "From the start of running to the first token.",
            _REQUEST,
        )  # fmt: skip
        self._decode = seconds(
            "request_decode_time_seconds", "From the first token to the last.", _REQUEST
        )
        counts = self._histogram
        self._request_prompt = counts("request_prompt_tokens", "Prompt tokens.", lengths)
        self._request_generated = counts("request_generation_tokens", "Generated tokens.", lengths)
        self._request_longest = counts(
            "request_max_num_generation_tokens", "Tokens of a request's longest output.", lengths
        )
        self._request_computed = counts(
            "request_prefill_kv_computed_tokens", "Prompt tokens that were not cached.", lengths
        )
        self._request_n = counts("request_params_n", "The parameter n.", _N)
        self._request_max = counts(
            "request_params_max_tokens", "The parameter max_tokens.", lengths
        )
        self._request_preemptions = counts(
            "request_num_preemptions", "How often a request was put back.", _PREEMPTIONS
        )
        self._lifetime = seconds(
            "kv_block_lifetime_seconds", "From a sampled block's filling to its eviction.", _BLOCK
        )
        self._idle = seconds(
            "kv_block_idle_before_evict_seconds",
            "From a sampled block's last use to its eviction.",
            _BLOCK,
        )
        self._gap = seconds(
            "kv_block_reuse_gap_seconds", "Between uses of a sampled block, its latest.", _BLOCK
        )
        self._step_tokens = counts("iteration_tokens_total", "Tokens a step.", _STEP_TOKENS)

    # ---- what the engine's front end tells ----------------------------------------------------

    def step(self, stats: EngineStats) -> None:
        """Gauges as they are, counts since the last call."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._waiting_for_capacity.set(stats.waiting)
        self._usage.set(stats.kv_usage)
        hits, computed = stats.prefix_hits, stats.computed_prompt_tokens
        if stats.prefix_queries:
            self._queries.inc(stats.prefix_queries)
        below = sum(stats.tier_hits.values())
        if hits:
            self._hits.inc(hits)
            self._cached_by_source["device"].inc(hits)
            self._by_source["local_cache_hit"].inc(hits)
        for tier, tokens in stats.tier_hits.items():
            self._external_hits.inc(tokens)
            self._cached_by_source[tier].inc(tokens)
            self._by_source["external_kv_transfer"].inc(tokens)
        if stats.prefix_queries > hits:
            self._external_queries.inc(stats.prefix_queries - hits)
        if computed:
            self._by_source["local_compute"].inc(computed)
        lossy = stats.compressed_prefix_hits
        if lossy:
            self._cached_by_source["compressed"].inc(lossy)
            self._by_source["local_cache_hit"].inc(lossy)
        self._cached.inc(hits + below + lossy)
        self._prompt.inc(hits + below + lossy + computed)
        if stats.generated_tokens:
            self._generated.inc(stats.generated_tokens)
        if stats.preemptions:
            self._preemptions.inc(stats.preemptions)
        if stats.compressions:
            self._compressions.inc(stats.compressions)
            self._dropped_kvs.inc(stats.dropped_kvs)
        if stats.prefix_queries:
            self._rate(stats)
        self._choices["load"].inc(stats.chose_load)
        self._choices["compute"].inc(stats.chose_compute)
        self._choices["both"].inc(stats.chose_both)
        for told in stats.tiers:
            self._tier(told)
        for histogram, values in (
            (self._lifetime, stats.block_lifetimes),
            (self._idle, stats.block_idles),
            (self._gap, stats.block_gaps),
        ):
            for value in values:
                histogram.observe(value)
        for tokens in stats.step_tokens:
            self._step_tokens.observe(tokens)

    def _rate(self, stats: EngineStats) -> None:
        self._looked_up += stats.prefix_queries
        for tier, tokens in ({"device": stats.prefix_hits} | stats.tier_hits).items():
            self._found[tier] += tokens
        for tier, tokens in self._found.items():
            self._hit_rates[tier].set(tokens / self._looked_up)

    def _tier(self, stats: TierStats) -> None:
        """The core tells totals; counters take what has been added since."""
        for name, gauges in self._tier_gauges.items():
            gauges[stats.tier].set(getattr(stats, name))
        for name, counters in self._tier_counters.items():
            total, where = getattr(stats, name), (stats.tier, name)
            counters[stats.tier].inc(max(0.0, total - self._tier_before.get(where, 0.0)))
            self._tier_before[where] = total

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def inter_token(self, seconds: float, count: int = 1) -> None:
        """`count` tokens came together, `seconds` after the one before them."""
        for _ in range(count):
            self._itl.observe(seconds / count)

    def finished(self, end: RequestEnd) -> None:
        self._finished.get(end.reason, self._finished["error"]).inc()
        self._request_prompt.observe(end.prompt_tokens)
        self._request_generated.observe(end.generation_tokens)
        self._request_longest.observe(end.longest_output)
        self._request_computed.observe(end.prompt_tokens - end.cached_tokens)
        self._e2e.observe(end.e2e)
        self._queue.observe(end.queue)
        self._inference.observe(end.prefill + end.decode)
        self._prefill.observe(end.prefill)
        self._decode.observe(end.decode)
        if end.longest_output > 1:
            self._tpot.observe(end.decode / (end.longest_output - 1))
        self._request_n.observe(end.n)
        if end.max_tokens is not None:
            self._request_max.observe(end.max_tokens)
        self._request_preemptions.observe(end.preemptions)

    def slept(self, level: int | None) -> None:
        """The engine sleeps at this level, or is awake."""
        state = SLEEP_STATES[level or 0]
        for name, gauge in self._sleep.items():
            gauge.set(name == state)

    def rejected(self, reason: str) -> None:
        """A request was refused; `reason` is the limit it met, if it met one."""
        if reason in self._rejections:
            self._rejections[reason].inc()

    def cache_config(self, info: Mapping[str, str]) -> None:
        """The cache's configuration, as the labels of a gauge that is 1."""
        if self._info is not None:
            self.registry.unregister(self._info)
        labels = dict(info) | {"engine": ENGINE}
        self._info = Gauge(
            "vllm:cache_config_info",
            "The KV cache's configuration.",
            list(labels),
            registry=self.registry,
        )
        self._info.labels(**labels).set(1)

    def read(self) -> list[reader.Metric]:
        """All values, for `LLM.get_metrics()`."""
        return reader.read(self.registry)

    # ---- making them --------------------------------------------------------------------------

    def _make(self, kind: Any, name: str, help: str, more: Sequence[str] = (), **kw: Any) -> Any:
        return kind(f"vllm:{name}", help, [*self._labels, *more], registry=self.registry, **kw)

    def _gauge(self, name: str, help: str) -> Gauge:
        made: Gauge = self._make(Gauge, name, help).labels(**self._labels)
        return made

    def _counter(self, name: str, help: str) -> Counter:
        made: Counter = self._make(Counter, name, help).labels(**self._labels)
        return made

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        made: Histogram = self._make(Histogram, name, help, buckets=buckets).labels(**self._labels)
        return made

    def _many(
        self, kind: Any, name: str, help: str, label: str, values: Sequence[str]
    ) -> dict[str, Any]:
        """One child for each value of a further label; no others are ever made."""
        family = self._make(kind, name, help, (label,))
        return {value: family.labels(**self._labels, **{label: value}) for value in values}


def one_two_five(highest: int) -> list[int]:
    """Bucket bounds 1, 2, 5, 10, 20, 50, ... up to `highest`."""
    bounds = [m * 10**e for e in range(len(str(highest))) for m in (1, 2, 5)]
    return [b for b in bounds if b <= highest] or [1]
