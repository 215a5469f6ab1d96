"""The flags of what the engine tells of itself: statistics, metrics of blocks, profiles."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from vllm.config.engine import ProfilerConfig
from vllm.config.flags import flag


@dataclass(kw_only=True)
class ObservabilityArgs:
    disable_log_stats: bool = flag(
        False, "Observability", "No statistics: no log line, no metrics."
    )
    prefix_metrics: str | None = flag(
        None,
        "Observability",
        "Write which request and which block reused what to PREFIX_requests.jsonl and "
        "PREFIX_blocks.jsonl, at the end and when asked to.",
    )
    kv_cache_metrics: bool = flag(
        False, "Observability", "Metrics of how long cached blocks live, by a sample of them."
    )
    kv_cache_metrics_sample: float = flag(
        0.01, "Observability", "Share of the blocks that are sampled for it."
    )
    profiler_config: dict[str, Any] = flag(
        None,
        "Observability",
        "JSON object: torch_profiler_dir (also VLLM_TORCH_PROFILER_DIR), "
        "torch_profiler_record_shapes, torch_profiler_with_stack, torch_profiler_with_memory, "
        "max_iterations.",
    )

    def checked_prefix_metrics(self) -> str | None:
        prefix = self.prefix_metrics
        if prefix is not None and not (Path(prefix).name and Path(prefix).parent.is_dir()):
            raise ValueError(f"prefix_metrics: {prefix!r} is in no folder that is there")
        return prefix

    def metrics_sample(self) -> float:
        """Share of the blocks whose lives are told."""
        if not 0 < self.kv_cache_metrics_sample <= 1:
            raise ValueError("kv_cache_metrics_sample must be above 0 and at most 1")
        return self.kv_cache_metrics_sample if self.kv_cache_metrics else 0.0

    def make_profiler(self) -> ProfilerConfig | None:
        """None without a folder. Raises ValueError naming the field at fault."""
        given = dict(self.profiler_config or {})
        if given.pop("profiler", "torch") != "torch":
            raise ValueError("profiler_config.profiler: only torch is supported")
        given.setdefault("torch_profiler_dir", os.environ.get("VLLM_TORCH_PROFILER_DIR"))
        hints = get_type_hints(ProfilerConfig)
        for name, value in given.items():
            if name not in hints:
                raise ValueError(
                    f"profiler_config.{name} is not known; there are {', '.join(hints)}"
                )
            if name != "torch_profiler_dir" and type(value) is not hints[name]:
                raise ValueError(f"profiler_config.{name} must be of type {hints[name].__name__}")
        if not given["torch_profiler_dir"]:
            if self.profiler_config:
                raise ValueError("profiler_config needs torch_profiler_dir")
            return None
        config = ProfilerConfig(**given)
        if config.max_iterations < 1:
            raise ValueError("profiler_config.max_iterations must be at least 1")
        return config
