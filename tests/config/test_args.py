"""`EngineArgs` as keywords, as flags and as YAML: the same configuration, the same refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.config.given import (
    DEMO,
    IDLE_VALUES,
    OTHER_VALUES,
    PREFETCH,
    REFUSED_VALUES,
    SIMULATOR_VALUES,
    TIER_VALUES,
    as_flags,
    in_file,
    parse,
)
from vllm.config import EngineArgs, hub
from vllm.config.args.compression import CompressionArgs
from vllm.config.engine import SimulatorConfig, TierConfig
from vllm.config.failures import Failures


def test_keywords_flags_and_yaml_are_the_same(tmp_path: Path) -> None:
    keywords = EngineArgs(**OTHER_VALUES)
    assert parse(*as_flags(OTHER_VALUES)) == keywords
    assert parse(*as_flags(OTHER_VALUES, dash="_")) == keywords
    assert parse("--config", in_file(tmp_path, OTHER_VALUES)) == keywords
    dashed = {name.replace("_", "-"): value for name, value in OTHER_VALUES.items()}
    assert parse(f"--config={in_file(tmp_path, dashed)}") == keywords
    assert parse() == EngineArgs()
    assert keywords.create_engine_config() == parse(*as_flags(OTHER_VALUES)).create_engine_config()


def test_tiers_from_keywords_flags_and_yaml(tmp_path: Path) -> None:
    keywords = EngineArgs(**TIER_VALUES)
    assert parse(*as_flags(TIER_VALUES)) == keywords
    assert parse("--config", in_file(tmp_path, TIER_VALUES)) == keywords
    config = keywords.create_engine_config()
    assert config.scheduler.window_size == 4
    assert config.cache.tiers == TierConfig(
        host_bytes=3 << 29,  # kv_offloading_size beats swap_space
        host_blocks=55,
        disk_dir="somewhere",
        disk_bytes=1 << 20,
        asynchronous=False,
        min_load_tokens=64,
        shared="file:///somewhere",
        shared_bytes=1 << 30,
    )


def test_the_simulator_from_keywords_flags_and_yaml(tmp_path: Path) -> None:
    keywords = EngineArgs(**SIMULATOR_VALUES)
    assert parse(*as_flags(SIMULATOR_VALUES)) == keywords
    assert parse("--config", in_file(tmp_path, SIMULATOR_VALUES)) == keywords
    config = keywords.create_engine_config()
    assert config.simulator == SimulatorConfig(
        mode="trace",
        latency="constant:step=0.5",
        clock="virtual",
        trace="somewhere",
        host_bandwidth=1e9,
        disk_bandwidth=1e8,
        failures=Failures(tier=0.25),
    )
    assert (config.model.num_layers, config.model.num_kv_heads) == (32, 8)
    assert config.load.load_format == "dummy"


def test_the_table_above_names_every_argument() -> None:
    """So that an argument that is added is tested too."""
    defaults = dataclasses.asdict(EngineArgs())
    apart = CompressionArgs.__dataclass_fields__  # tests/config/test_compression.py
    tested = {*OTHER_VALUES, *TIER_VALUES, *SIMULATOR_VALUES, *REFUSED_VALUES, *IDLE_VALUES, *apart}
    assert set(defaults) - tested == {PREFETCH, "tokenizer_mode", "tensor_parallel_size"}
    assert all(OTHER_VALUES[name] != defaults[name] for name in OTHER_VALUES)


def test_no_tiers_and_no_window_unless_asked_for() -> None:
    config = EngineArgs(swap_space=1).create_engine_config()
    assert config.cache.tiers is None
    assert config.scheduler.window_size == 1
    assert EngineArgs(kv_offloading_size=1).create_engine_config().cache.tiers is not None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"enable_multi_tier_prefix_caching": True, "enable_prefix_caching": False}, "needs"),
        ({"enable_prefix_aware_scheduling": True, "enable_prefix_caching": False}, "needs"),
        ({"disk_cache_dir": "x"}, "disk_cache_dir needs"),
        ({"num_cpu_blocks_override": 9}, "num_cpu_blocks_override needs"),
        ({"min_load_tokens": 9}, "min_load_tokens needs"),
        ({"scheduler_window_size": 0}, "scheduler_window_size"),
        ({"swap_space": -1.0}, "swap_space"),
        ({"num_cpu_blocks_override": 0}, "num_cpu_blocks_override"),
        ({"min_load_tokens": -1}, "min_load_tokens"),
        ({PREFETCH: True}, f"{PREFETCH} needs enable_multi_tier"),
        ({PREFETCH: True, "kv_offloading_size": 1, "enable_async_swapping": False}, "async_swapp"),
        ({"preemption_mode": "swap"}, "preemption_mode swap needs"),
        ({"preemption_mode": "swap", "kv_offloading_size": 0, "disk_cache_dir": "x"}, "host"),
        ({"enable_multi_tier_prefix_caching": True, "swap_space": 0}, "no tier"),
    ],
)
def test_tiers_that_cannot_be(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EngineArgs(**values).create_engine_config()


BAD_VALUES: list[tuple[str, Any]] = [
    ("tensor_parallel_size", 2),
    ("tensor_parallel_size", 0),
    ("hf_overrides", [1]),
    ("override_generation_config", "x"),
    ("dtype", "int8"),
    ("dtype", "bfloat17"),
    ("load_format", "pickle"),
    ("device", "tpu"),
    ("kernels", "magic"),
    ("tokenizer_mode", "slow"),
    ("scheduling_policy", "lifo"),
    ("max_model_len", 0),
    ("max_model_len", -2),
    ("max_model_len", "8k"),
    ("max_model_len", 10**9),
    ("max_logprobs", -2),
    ("block_size", 0),
    ("block_size", "16"),
    ("block_size", 16.0),
    ("block_size", True),
    ("num_gpu_blocks_override", 0),
    ("kv_cache_memory_bytes", 0),
    ("gpu_memory_utilization", 0),
    ("gpu_memory_utilization", 1.01),
    ("gpu_memory_utilization", "most"),
    ("max_num_seqs", 0),
    ("max_num_batched_tokens", 0),
    ("max_num_batched_tokens", 8),
    ("max_num_queued_reqs", 0),
    ("max_num_queued_tokens", 0),
    ("long_prefill_token_threshold", -1),
    ("cpu_threads", 0),
    ("enable_prefix_caching", "no"),
    ("enforce_eager", 1),
    ("seed", None),
    ("seed", 1.5),
    ("model", 5),
    ("generation_config", "/nowhere/at/all"),
    ("chat_template", "/nowhere/at/all.jinja"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=lambda v: repr(v)[:30])
def test_a_bad_value_is_a_value_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        EngineArgs(**{name: value}).create_engine_config()


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_modle_len"):
        EngineArgs(max_modle_len=5)


def test_programs_may_give_paths_and_torchs_types(tmp_path: Path) -> None:
    import torch

    args = EngineArgs(model=hub.demo_model(), tokenizer=hub.demo_model(), dtype=torch.float16)
    config = args.create_engine_config()
    assert (config.model.name, config.model.dtype) == (DEMO, "float16")
    json.dumps(dataclasses.asdict(args))
    template = tmp_path / "chat.jinja"
    template.write_text("{{ 1 }}\n")
    given = EngineArgs(chat_template=template).create_engine_config().model.chat_template
    assert given == "{{ 1 }}\n"


def test_defaults_differ_between_a_server_and_offline_use() -> None:
    offline = EngineArgs().create_engine_config().scheduler
    serving = EngineArgs().create_engine_config(serving=True).scheduler
    assert (offline.max_num_seqs, offline.max_num_batched_tokens) == (256, 4096)
    assert (serving.max_num_seqs, serving.max_num_batched_tokens) == (128, 2048)
    many = EngineArgs(max_num_seqs=5000).create_engine_config().scheduler
    assert many.max_num_batched_tokens == 5000


@pytest.mark.parametrize("asked", ["x", "nan", "inf"])
def test_a_bad_environment_variable_is_named(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", asked)
    with pytest.raises(ValueError, match="VLLM_CPU_KVCACHE_SPACE"):
        EngineArgs().create_engine_config()


def test_the_environment_sets_the_caches_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.25")
    assert EngineArgs().create_engine_config().cache.memory_bytes == 1 << 28
    given = EngineArgs(kv_cache_memory_bytes=5 << 20).create_engine_config()
    assert given.cache.memory_bytes == 5 << 20


def test_the_environment_of_cpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLATFORM", "cpu")
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "TORCH_SDPA")
    device = EngineArgs(device="cuda").create_engine_config().device
    assert (device.device, device.kernels) == ("cpu", "reference")
    assert EngineArgs(kernels="cpu").create_engine_config().device.kernels == "cpu"


def test_the_configuration_is_frozen() -> None:
    config = EngineArgs().create_engine_config()
    for part, name in ((config, "model"), (config.model, "seed"), (config.cache, "block_size")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 1)
