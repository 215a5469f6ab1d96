"""`EngineArgs` as keywords, as flags and as YAML: the same configuration, the same refusals."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm.config import AsyncEngineArgs, EngineArgs, hub
from vllm.config.compression_args import CompressionArgs
from vllm.config.engine import SimulatorConfig, TierConfig
from vllm.config.failures import Failures
from vllm.config.flags import FlexibleArgumentParser, add_flags, human_size
from vllm.engine.capacity import capacity

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


def test_the_environment_of_cpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLATFORM", "cpu")
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "TORCH_SDPA")
    device = EngineArgs(device="cuda").create_engine_config().device
    assert (device.device, device.kernels) == ("cpu", "reference")
    assert EngineArgs(kernels="cpu").create_engine_config().device.kernels == "cpu"


def test_no_tiers_and_no_window_unless_asked_for() -> None:
    config = EngineArgs(swap_space=1).create_engine_config()
    assert config.cache.tiers is None
    assert config.scheduler.window_size == 1
    assert EngineArgs(kv_offloading_size=1).create_engine_config().cache.tiers is not None


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


@pytest.mark.parametrize("name", REFUSED_VALUES)
def test_what_is_not_implemented_is_refused_by_name(name: str) -> None:
    reason = next(f.metadata["help"] for f in dataclasses.fields(EngineArgs) if f.name == name)
    with pytest.raises(ValueError, match=f"^{name}: {re.escape(reason)}"):
        EngineArgs(**{name: REFUSED_VALUES[name]}).create_engine_config()
    parsed = parse(*as_flags({name: REFUSED_VALUES[name]}))
    assert getattr(parsed, name) == REFUSED_VALUES[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distributed_executor_backend", "ray"),
        ("prefix_caching_hash_algo", "xxhash"),
        ("kv_offloading_backend", "lmcache"),
        ("logprobs_mode", "processed_logits"),
    ],
)
def test_of_some_one_value_is_accepted(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be one of"):
        EngineArgs(**{name: value}).create_engine_config()


def test_short_forms_and_sizes() -> None:
    args = parse(*"-tp 1 -pp 1 -dp 1 -O3 -cc.level 2 -q awq --max-model-len 1k".split())
    assert (args.optimization_level, args.compilation_config) == (3, {"level": 2})
    assert (args.quantization, args.max_model_len) == ("awq", 1000)


def test_what_asks_for_nothing_is_accepted() -> None:
    plain = EngineArgs().create_engine_config()
    neutral = {"task": "generate", "runner": "generate", "quantization": None, "lora_modules": []}
    assert EngineArgs(**IDLE_VALUES, **neutral).create_engine_config() == plain


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hf-overrides.a", "1"], {"a": 1}),
        (["--hf_overrides.rope_scaling.my_factor=2.5"], {"rope_scaling": {"my_factor": 2.5}}),
        (["--hf-overrides.a", "x", "--hf-overrides.b", "[1, 2]"], {"a": "x", "b": [1, 2]}),
        (["--hf-overrides.a", "1", "--hf-overrides", '{"a": 2, "b": 3}'], {"a": 2, "b": 3}),
        (["--hf-overrides", '{"b": {"c": 1}}', "--hf-overrides.b.d", "2"], {"b": {"c": 1, "d": 2}}),
        (["--hf-overrides.a=x=y"], {"a": "x=y"}),
    ],
)
def test_keys_behind_dots(words: list[str], expected: dict[str, Any]) -> None:
    assert parse(*words).hf_overrides == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seed.a", "1"], "seed.a"),
        (["--hf-overides.a", "1"], "did you mean --hf-overrides"),
        (["--hf-overrides.a", "1", "--hf-overrides.a.b", "1"], "'a' is not an object"),
        (["--hf-overrides", "[1]"], "not a JSON object"),
    ],
)
def test_keys_behind_dots_that_cannot_be(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert says in capsys.readouterr().err


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


def test_the_table_above_names_every_argument() -> None:
    """So that an argument that is added is tested too."""
    defaults = dataclasses.asdict(EngineArgs())
    apart = CompressionArgs.__dataclass_fields__  # tests/config/test_compression.py
    tested = {*OTHER_VALUES, *TIER_VALUES, *SIMULATOR_VALUES, *REFUSED_VALUES, *IDLE_VALUES, *apart}
    assert set(defaults) - tested == {PREFETCH, "tokenizer_mode", "tensor_parallel_size"}
    assert all(OTHER_VALUES[name] != defaults[name] for name in OTHER_VALUES)


def test_the_command_line_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    path = in_file(tmp_path, {"seed": 1, "block-size": 32, "enable-prefix-caching": False})
    for words in (["--config", path, "--seed", "2"], ["--seed", "2", "--config", path]):
        args = parse(*words, "--enable-prefix-caching")
        assert (args.seed, args.block_size, args.max_logprobs) == (2, 32, 20)
        assert args.enable_prefix_caching is True


@pytest.mark.parametrize(
    "words",
    [["mine"], ["mine", "--seed", "1"], ["--seed", "1", "mine"], ["--enforce-eager", "mine"]],
)
@pytest.mark.parametrize("more", [{}, {"served-model-name": ["a", "b"]}, {"seed": 3}])
def test_a_positional_model_beats_the_files(
    tmp_path: Path, words: list[str], more: dict[str, Any]
) -> None:
    path = in_file(tmp_path, {"model": "theirs"} | more)
    for with_file in ([*words, "--config", path], ["--config", path, *words]):
        parsed = make_parser().parse_args(with_file)
        assert (parsed.model_tag, parsed.model) == ("mine", None)
        assert parsed.served_model_name == more.get("served-model-name")


def test_the_files_model_counts_when_there_is_no_other(tmp_path: Path) -> None:
    path = in_file(tmp_path, {"model": "theirs", "served_model_name": ["a", "b"]})
    assert parse("--config", path, "--seed", "1").model == "theirs"
    assert parse("--config", path, "--model", "mine").model == "mine"
    positional = FlexibleArgumentParser(prog="test")
    positional.add_argument("model", nargs="?")
    assert positional.parse_args(["--config", in_file(tmp_path, {"model": "x"})]).model == "x"


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    values = {"plain": False, "enforce_eager": False, "seed": None, "served-model-name": []}
    parsed = make_parser().parse_args(["--config", in_file(tmp_path, values)])
    assert parsed.plain is False
    assert parsed.served_model_name is None
    assert make_parser().parse_args(["--config", in_file(tmp_path, {"plain": True})]).plain is True
    assert parse("--config", in_file(tmp_path, "max-model-len: 1k")).max_model_len == 1000
    assert parse("--config", in_file(tmp_path, "")) == EngineArgs()


BAD_LINES = [
    (["--max-model-length", "5"], "--max-model-len"),
    (["--enable_prefix_cachin"], "--enable-prefix-caching"),
    (["--seed", "x"], "--seed"),
    (["--dtype", "int8"], "--dtype"),
    (["--max-model-len", "5q"], "--max-model-len"),
    (["--hf-overrides", "[1]"], "--hf-overrides"),
    (["--hf-overrides", "{"], "--hf-overrides"),
    (["one", "two"], "two"),
    (["--config"], "--config"),
    (["--config", "/nowhere/at/all.yaml"], "/nowhere/at/all.yaml"),
]


@pytest.mark.parametrize(("words", "told"), BAD_LINES, ids=lambda v: str(v)[:40])
def test_a_bad_line_is_exit_code_2_and_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("max_modle_len: 5", "max-model-len"),
        ("nonsense-altogether-xyz: 5", "nonsense"),
        ("- seed", "names and values"),
        ("seed: [", "--config"),
        ("seed: x", "--seed"),
        ("seed: false", "--no-seed"),
        ("seed: [1, 2]", "seed takes one value"),
        ("dtype: int8", "--dtype"),
        ("\x00", "--config"),
    ],
)
def test_a_bad_file_is_exit_code_2_and_told(
    tmp_path: Path, content: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--config", in_file(tmp_path, content))
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("0", 0), ("4096", 4096), ("4k", 4000), ("4K", 4096), ("4Ki", 4096), ("4ki", 4096)],
        *[("2m", 2_000_000), ("2M", 2 << 20), ("1g", 10**9), ("1G", 1 << 30), ("1GiB", 1 << 30)],
        *[("1.5k", 1500), ("0.5K", 512), (" 8K ", 8192), ("1T", 1 << 40), ("1t", 10**12)],
    ],
)
def test_human_sizes(text: str, size: int) -> None:
    assert human_size(text) == size
    assert parse("--max-model-len", text).max_model_len == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.0001k", "1e3", "4x", "100i", "1 k", "0x10"])
def test_what_is_no_human_size(text: str) -> None:
    with pytest.raises(SystemExit):
        parse(f"--max-model-len={text}")


def test_help_says_what_units_mean() -> None:
    """A unit in a help text must mean what the parser takes it for."""
    helps = make_parser().format_help()
    assert "8K means 8192" in " ".join(helps.split())
    assert "2G means 2 GiB" in " ".join(helps.split())
    assert (human_size("8K"), human_size("2G")) == (8192, 2 << 30)


def test_auto_is_the_models_own_length() -> None:
    for args in (
        parse("--max-model-len", "auto"),
        EngineArgs(max_model_len="auto"),
        EngineArgs(max_model_len=-1),
    ):
        config = args.create_engine_config()
        assert config.model.max_model_len == config.model.hf["max_position_embeddings"]
        assert config.model.max_len_given is False
    with pytest.raises(SystemExit):
        parse("--long-prefill-token-threshold", "auto")


# ---- values -----------------------------------------------------------------------------------

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


def test_a_programs_own_parser_takes_the_engines_flags() -> None:
    parser = FlexibleArgumentParser()
    parser.add_argument("--mine", type=int)
    parsed = EngineArgs.add_cli_args(parser).parse_args(["--mine", "1", "--block-size", "32"])
    assert EngineArgs.from_cli_args(parsed) == EngineArgs(block_size=32)
    assert type(AsyncEngineArgs.from_cli_args(parsed)) is AsyncEngineArgs


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


def test_the_configuration_is_frozen() -> None:
    config = EngineArgs().create_engine_config()
    for part, name in ((config, "model"), (config.model, "seed"), (config.cache, "block_size")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 1)


# ---- capacity ---------------------------------------------------------------------------------


def fitted(**given: Any):
    return capacity(EngineArgs(**given).create_engine_config())


def test_a_length_that_only_the_model_names_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    assert fitted(num_gpu_blocks_override=10, block_size=16).max_model_len == 160
    assert "max_model_len" in caplog.text
    roomy = fitted(num_gpu_blocks_override=1000)
    assert (roomy.num_blocks, roomy.tokens) == (1000, 16000)


def test_a_length_that_was_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_model_len 161 .* holds 160 tokens"):
        fitted(num_gpu_blocks_override=10, max_model_len=161)
    assert fitted(num_gpu_blocks_override=10, max_model_len=160).max_model_len == 160


def test_blocks_come_from_memory_unless_they_are_given() -> None:
    one = fitted(num_gpu_blocks_override=1000).spec.block_bytes
    assert fitted(kv_cache_memory_bytes=one * 20 + one - 1).num_blocks == 20
    with pytest.raises(ValueError, match="kv_cache_memory_bytes"):
        fitted(kv_cache_memory_bytes=one - 1)


def test_without_chunks_a_step_must_hold_the_longest_prompt() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        fitted(enable_chunked_prefill=False, max_num_batched_tokens=500, max_num_seqs=4)
    fitted(
        enable_chunked_prefill=False,
        max_num_batched_tokens=500,
        max_num_seqs=4,
        max_model_len=500,
    )
