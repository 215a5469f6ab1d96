"""The flags of KV-cache compression, by the names of KV-Compress's engine."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vllm.config.compression import AGGREGATIONS, CompressionSettings, check
from vllm.config.flags import at_least, flag
from vllm.config.head_bias import read_head_bias
from vllm.config.model import ModelConfig
from vllm.core.compression import BUDGET_RULES, DEFAULT_METRIC, METRICS, CompressionParams
from vllm.core.errors import VLLMValidationError

GROUP = "Compression"
SWITCHES = ("enable_kvc", "enable_kvcompress")


@dataclass(kw_only=True)
class CompressionArgs:
    """Per-head compression of the KV cache. All but the switches need one of the switches."""

    enable_kvc: bool = flag(
        False, GROUP, "Let requests compress their KVs; the flags below are their defaults."
    )
    enable_kvcompress: bool = flag(False, GROUP, "The same, by its longer name.")
    target_compression_rate: float = flag(
        1.0, GROUP, "Share of the KVs outside the protected window that stays, in (0, 1]."
    )
    max_cache_tokens: int | None = flag(
        None, GROUP, "KVs a head that stay, on average over heads; instead of a rate."
    )
    protected_window_size: int = flag(
        64, GROUP, "So many of the newest tokens stay in every head.", size=True
    )
    compression_sinks: int = flag(0, GROUP, "So many of the first tokens stay in every head.")
    compression_metric: str = flag(DEFAULT_METRIC, GROUP, "What a KV is worth.", choices=METRICS)
    random_evict: bool = flag(False, GROUP, "The metric random, by its older name.")
    compression_budget: str = flag(
        "global", GROUP, "Who competes for what stays.", choices=BUDGET_RULES
    )
    even_layer_evict: bool = flag(False, GROUP, "The budget per-layer, by its older name.")
    compression_head_floor: float = flag(
        0.0, GROUP, "Share of an even split that each head is sure of, 0 to 1 (AdaKV: 0.2)."
    )
    compression_value_norm: bool = flag(
        False, GROUP, "Weigh scores by what the values add to the output (CriticalKV)."
    )
    control_layers: list[int] = flag(
        None, GROUP, "Layers that keep everything, to compare with; needs even eviction.", many=True
    )
    share_compressed_prefixes: bool = flag(
        False, GROUP, "Keep compressed prefixes (shared_prefix_tokens) for later requests."
    )
    compression_interval: int = flag(
        1, GROUP, "Steps between compressions of a sequence that decodes."
    )
    new_token_limit: int | None = flag(
        None, GROUP, "Compress, too, when the batch has so many new tokens."
    )
    max_kv_per_compression: int = flag(
        5_000_000, GROUP, "KVs, over layers and heads, that one step may compress.", size=True
    )
    prefill_metric_collection_window_size: int = flag(
        32, GROUP, "Last prompt queries that kvc and snapkv observe.", size=True
    )
    prefill_metric_collection_block_size: int = flag(
        4096, GROUP, "Queries whose attention is summed before it is pooled (kvc).", size=True
    )
    metric_collection_buffer_size: int = flag(
        0, GROUP, "A query says nothing of so many KVs before it (kvc).", size=True
    )
    metric_aggregation: str = flag(
        "L2-sum", GROUP, "Attention or its square, summed or averaged (kvc).", choices=AGGREGATIONS
    )
    maxpool_metrics: bool = flag(True, GROUP, "Max-pool over 7 neighbouring KVs (kvc).")
    only_prefill_metrics: bool = flag(False, GROUP, "Do not observe decode queries (kvc).")
    kv_head_bias_path: str | None = flag(
        None, GROUP, "An .npz or .safetensors file: bias [layers, heads, bins], pos_bins [bins]."
    )
    kv_head_bias_weight: float = flag(1.0, GROUP, "What the bias is multiplied by.")

    def make_compression(self, model: ModelConfig) -> CompressionSettings | None:
        """None without --enable-kvc. Raises ValueError naming the argument at fault."""
        if not (self.enable_kvc or self.enable_kvcompress):
            for f in fields(CompressionArgs):
                if f.name not in SWITCHES and getattr(self, f.name) != f.default:
                    raise ValueError(f"{f.name} needs enable_kvc")
            return None
        for name, least in _LEAST.items():
            at_least(self, least, name)
        if not 0 < self.target_compression_rate <= 1:
            raise ValueError(
                f"target_compression_rate must be in (0, 1], not {self.target_compression_rate}"
            )
        if self.target_compression_rate < 1 and self.max_cache_tokens is not None:
            raise ValueError("target_compression_rate and max_cache_tokens exclude each other")
        if not 0 <= self.compression_head_floor <= 1:
            raise ValueError(
                f"compression_head_floor must be between 0 and 1, not {self.compression_head_floor}"
            )
        metric, rule = self._metric(), self._rule()
        control = tuple(self.control_layers or ())
        for layer in control:
            if not 0 <= layer < model.num_layers:
                raise ValueError(
                    f"control_layers: the model has the layers 0 to {model.num_layers - 1}, "
                    f"not {layer}"
                )
        if control and rule != "per-layer":
            raise ValueError(
                "control_layers needs even_layer_evict: under a shared budget the other layers "
                "would pay for what these keep"
            )
        return CompressionSettings(
            defaults=self._defaults(metric, rule),
            interval=self.compression_interval,
            max_kvs=self.max_kv_per_compression,
            new_token_limit=self.new_token_limit,
            window=self.prefill_metric_collection_window_size,
            block=self.prefill_metric_collection_block_size,
            aggregation=self.metric_aggregation,
            max_pool=self.maxpool_metrics,
            only_prefill=self.only_prefill_metrics,
            value_norm=self.compression_value_norm,
            control_layers=control,
            share=self.share_compressed_prefixes,
            bias=None
            if self.kv_head_bias_path is None
            else read_head_bias(self.kv_head_bias_path, model.num_layers, model.num_kv_heads),
            bias_weight=self.kv_head_bias_weight,
            seed=model.seed,
        )

    def _metric(self) -> str:
        if not self.random_evict:
            return self.compression_metric
        if self.even_layer_evict:
            raise ValueError("random_evict and even_layer_evict exclude each other")
        if self.compression_metric not in (DEFAULT_METRIC, "random"):
            raise ValueError("random_evict and compression_metric exclude each other")
        return "random"

    def _rule(self) -> str:
        if not self.even_layer_evict:
            return self.compression_budget
        if self.compression_budget not in ("global", "per-layer"):
            raise ValueError("even_layer_evict and compression_budget exclude each other")
        return "per-layer"

    def _defaults(self, metric: str, rule: str) -> CompressionParams:
        made = CompressionParams(
            max_cache_tokens=self.max_cache_tokens,
            target_compression_rate=self.target_compression_rate,
            protected_window_size=self.protected_window_size,
            metric_collection_buffer_size=self.metric_collection_buffer_size,
            metric=metric,
            sinks=self.compression_sinks,
            budget_rule=rule,
            head_floor=self.compression_head_floor,
        )
        try:
            check(made, set())
        except VLLMValidationError as error:
            raise ValueError(error.message) from error
        return made


_LEAST = {
    "max_cache_tokens": 1,
    "protected_window_size": 0,
    "compression_sinks": 0,
    "compression_interval": 1,
    "new_token_limit": 1,
    "max_kv_per_compression": 1,
    "prefill_metric_collection_window_size": 1,
    "prefill_metric_collection_block_size": 1,
    "metric_collection_buffer_size": 0,
}
