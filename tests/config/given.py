"""Values for every argument, in the ways that they can be given: what several tests read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vllm.config import EngineArgs, hub
from vllm.config.flags import FlexibleArgumentParser, add_flags

DEMO = str(hub.demo_model())


def make_parser() -> FlexibleArgumentParser:
    """As `vllm serve`'s: a positional model beside --model, and a flag of several values."""
    parser = FlexibleArgumentParser(prog="test")
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--served-model-name", nargs="+")
    add_flags(parser, EngineArgs)
    return parser


def parse(*words: str) -> EngineArgs:
    return EngineArgs.from_mapping(make_parser().parse_args(list(words)))


def in_file(tmp_path: Path, values: Any) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


def as_flags(values: dict[str, Any], dash: str = "-") -> list[str]:
    words = []
    for name, value in values.items():
        name = name.replace("_", dash)
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no{dash}{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *value]
        elif isinstance(value, dict):
            words += [f"--{name}", json.dumps(value)]
        else:
            words.append(f"--{name}={value}")
    return words


# None is the default.
OTHER_VALUES: dict[str, Any] = {
    "model": DEMO,
    "tokenizer": DEMO,
    "skip_tokenizer_init": True,
    "trust_remote_code": True,
    "dtype": "float32",
    "seed": -7,
    "max_model_len": 512,
    "revision": "main",
    "hf_overrides": {"rms_norm_eps": 1e-6},
    "generation_config": "vllm",
    "override_generation_config": {"temperature": 0.5},
    "kv_eviction_policy": "s3fifo",
    "chat_template": "{{ messages }}",
    "max_logprobs": -1,
    "enforce_eager": True,
    "load_format": "dummy",
    "download_dir": "somewhere",
    "device": "cpu",
    "kernels": "reference",
    "cpu_threads": 3,
    "gpu_memory_utilization": 0.5,
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 24,
    "num_gpu_blocks_override": 77,
    "enable_prefix_caching": False,
    "max_num_seqs": 5,
    "max_num_batched_tokens": 600,
    "enable_chunked_prefill": False,
    "long_prefill_token_threshold": 9,
    "scheduling_policy": "priority",
    "max_num_queued_reqs": 11,
    "max_num_queued_tokens": 12,
    "disable_log_stats": True,
    "tokenizer_revision": "v2",
    "profiler_config": {"torch_profiler_dir": "somewhere"},
    "prefix_metrics": "here",
    "kv_cache_metrics": True,
    "kv_cache_metrics_sample": 0.5,
}

# These need prefix caching, which the table above turns off.
TIER_VALUES: dict[str, Any] = {
    "enable_multi_tier_prefix_caching": True,
    "swap_space": 0.5,
    "num_cpu_blocks_override": 55,
    "kv_offloading_size": 1.5,
    "disk_cache_dir": "somewhere",
    "shared_cache": "file:///somewhere",
    "shared_cache_size": 1 << 30,
    "disk_cache_size": 1 << 20,
    "enable_async_swapping": False,
    "min_load_tokens": 64,
    "enable_prefix_aware_scheduling": True,
    "scheduler_window_size": 4,
    "preemption_mode": "swap",
    "kv_events_config": {"enable_kv_cache_events": True, "topic": "x"},
}

# This needs asynchronous swapping, which the table above turns off.
PREFETCH = "enable_async_prefetching"


SIMULATOR_VALUES: dict[str, Any] = {
    "simulator": "trace",
    "simulator_model": "llama-3-8b",
    "simulator_latency": "constant:step=0.5",
    "simulator_clock": "virtual",
    "simulator_trace": "somewhere",
    "simulator_host_bandwidth": 1e9,
    "simulator_disk_bandwidth": 1e8,
    "simulator_failures": "tier=0.25",
}

REFUSED_VALUES: dict[str, Any] = {
    "pipeline_parallel_size": 2,
    "data_parallel_size": 2,
    "enable_expert_parallel": True,
    "enable_lora": True,
    "lora_modules": ["a=b"],
    "speculative_config": {"method": "ngram"},
    "quantization": "awq",
    "kv_cache_dtype": "fp8",
    "cpu_offload_gb": 1.0,
    "kv_transfer_config": {"kv_connector": "x"},
    "limit_mm_per_prompt": {"image": 1},
    "mm_processor_kwargs": {"a": 1},
    "runner": "pooling",
    "convert": "embed",
    "task": "embed",
    "pooler_config": {"a": 1},
    "logits_processors": ["a.b"],
    "worker_cls": "a.B",
    "worker_extension_cls": "a.B",
    "scheduler_cls": "a.B",
    "enable_prompt_embeds": True,
    "hf_token": "x",
    "structured_outputs_config": {"backend": "outlines"},
    "model_loader_extra_config": {"a": 1},
    "collect_detailed_traces": "all",
    "kv_cache_dtype_skip_layers": ["0"],
    "stream_interval": 2,
    "max_num_partial_prefills": 2,
    "max_long_partial_prefills": 2,
}
IDLE_VALUES: dict[str, Any] = {
    "max_lora_rank": 8,
    "max_loras": 2,
    "enable_sleep_mode": True,
    "async_scheduling": True,
    "disable_custom_all_reduce": True,
    "compilation_config": {"level": 3},
    "optimization_level": 3,
    "cudagraph_capture_sizes": [1, 2],
    "attention_backend": "FLASH_ATTN",
    "disable_cascade_attn": True,
    "disable_hybrid_kv_cache_manager": True,
    "distributed_executor_backend": "mp",
    "prefix_caching_hash_algo": "sha256",
    "kv_offloading_backend": "native",
    "logprobs_mode": "raw_logprobs",
    "config_format": "hf",
    "code_revision": "x",
    "allowed_local_media_path": "/",
    "allowed_media_domains": ["a.b"],
    "use_tqdm_on_load": False,
    "show_hidden_metrics_for_version": "0.32",
}
