"""Compression: flags, what they refuse, and what a request makes of them."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.config.given import in_file, parse
from vllm.config import EngineArgs
from vllm.config.args.compression import CompressionArgs
from vllm.config.compression import CompressionSettings, refuse_wishes
from vllm.config.head_bias import read_head_bias
from vllm.core.compression import WISHES, CompressionParams
from vllm.core.errors import VLLMValidationError
from vllm.sampling_params import SamplingParams

BIAS = np.ones((4, 4, 3), dtype=np.float32)
STARTS = np.array([0, 10, 25])


def settings_of(**given: Any) -> CompressionSettings | None:
    return EngineArgs(**given).create_engine_config().compression


def test_without_the_switch_there_is_none() -> None:
    assert settings_of() is None
    assert settings_of(enable_kvc=True) == settings_of(enable_kvcompress=True) is not None


def test_the_defaults_are_the_originals() -> None:
    made = settings_of(enable_kvc=True)
    assert made is not None
    assert made == CompressionSettings(
        defaults=CompressionParams(
            max_cache_tokens=None,
            target_compression_rate=1.0,
            protected_window_size=64,
            metric_collection_buffer_size=0,
        ),
        interval=1,
        max_kvs=5_000_000,
        new_token_limit=None,
        window=32,
        block=4096,
        aggregation="L2-sum",
        max_pool=True,
        only_prefill=False,
        bias_weight=1.0,
    )


def test_every_flag_reaches_the_settings(tmp_path: Any) -> None:
    path = tmp_path / "bias.npz"
    np.savez(path, bias=BIAS, pos_bins=STARTS)
    words = (
        "--enable-kvc --max-cache-tokens 128 --protected-window-size 50 --compression-sinks 3 "
        "--compression-metric snapkv --compression-head-floor 0.2 --compression-value-norm "
        "--even-layer-evict --control-layers 1 3 --compression-interval 7 --new-token-limit 9 "
        "--share-compressed-prefixes "
        "--max-kv-per-compression 1000 --prefill-metric-collection-window-size 16 "
        "--prefill-metric-collection-block-size 128 --metric-collection-buffer-size 10 "
        "--metric-aggregation L1-avg --no-maxpool-metrics --only-prefill-metrics "
        f"--kv-head-bias-path {path} --kv-head-bias-weight 0.5 "
        "--seed 5"
    ).split()
    made = parse(*words).create_engine_config().compression
    assert made is not None and made.bias is not None
    assert made == CompressionSettings(
        defaults=CompressionParams(
            max_cache_tokens=128,
            protected_window_size=50,
            metric_collection_buffer_size=10,
            metric="snapkv",
            sinks=3,
            budget_rule="per-layer",
            head_floor=0.2,
        ),
        interval=7,
        max_kvs=1000,
        new_token_limit=9,
        window=16,
        block=128,
        aggregation="L1-avg",
        max_pool=False,
        only_prefill=True,
        value_norm=True,
        control_layers=(1, 3),
        share=True,
        bias=made.bias,
        bias_weight=0.5,
        seed=5,
    )
    flagged = {w.removeprefix("--").removeprefix("no-").replace("-", "_") for w in words}
    apart = {"random_evict", "target_compression_rate", "compression_budget", "enable_kvcompress"}
    assert set(CompressionArgs.__dataclass_fields__) <= flagged | apart
    other = parse("--enable-kvcompress", "--random-evict", "--target-compression-rate=0.5")
    made = other.create_engine_config().compression
    assert made is not None
    assert made.defaults.metric == "random" and made.defaults.target_compression_rate == 0.5
    made = parse("--enable-kvc", "--compression-budget=pyramid").create_engine_config().compression
    assert made is not None and made.defaults.budget_rule == "pyramid"


def test_keywords_and_yaml_say_the_same(tmp_path: Any) -> None:
    values = {
        "enable_kvc": True,
        "max_cache_tokens": 128,
        "even_layer_evict": True,
        "control_layers": [1, 3],
        "maxpool_metrics": False,
        "compression_head_floor": 0.5,
    }
    assert parse("--config", in_file(tmp_path, values)) == EngineArgs(**values)


def test_minus_one_is_the_originals_word_for_unset() -> None:
    args = parse("--enable-kvc", "--max-cache-tokens", "-1", "--new-token-limit", "-1")
    assert args.create_engine_config().compression == settings_of(enable_kvc=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"target_compression_rate": 0.0}, "target_compression_rate must be in"),
        ({"target_compression_rate": 1.5}, "target_compression_rate must be in"),
        ({"target_compression_rate": 0.5, "max_cache_tokens": 128}, "exclude each other"),
        ({"max_cache_tokens": 0}, "max_cache_tokens must be at least 1"),
        ({"max_cache_tokens": 32}, "protected_window_size .64. must be at most max_cache_tokens"),
        ({"metric_collection_buffer_size": 65}, "metric_collection_buffer_size .65. must be"),
        ({"compression_interval": 0}, "compression_interval must be at least 1"),
        ({"new_token_limit": 0}, "new_token_limit must be at least 1"),
        ({"max_kv_per_compression": 0}, "max_kv_per_compression must be at least 1"),
        ({"protected_window_size": -1}, "protected_window_size must be at least 0"),
        ({"compression_metric": "best"}, "compression_metric must be one of"),
        ({"compression_head_floor": 1.5}, "compression_head_floor must be between"),
        ({"random_evict": True, "even_layer_evict": True}, "random_evict and even_layer_evict"),
        ({"random_evict": True, "compression_metric": "knorm"}, "random_evict and compression"),
        ({"even_layer_evict": True, "compression_budget": "pyramid"}, "even_layer_evict and"),
        ({"control_layers": [1]}, "control_layers needs even_layer_evict"),
        ({"control_layers": [4], "even_layer_evict": True}, "the layers 0 to 3, not 4"),
        ({"control_layers": [-1], "even_layer_evict": True}, "the layers 0 to 3, not -1"),
        ({"control_layers": 1, "even_layer_evict": True}, "control_layers must be a list of int"),
        ({"control_layers": ["1"], "even_layer_evict": True}, "control_layers must be of type"),
        ({"kv_head_bias_path": "absent.npz"}, "kv_head_bias_path: absent.npz cannot be read"),
    ],
)
def test_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings_of(enable_kvc=True, **given)


@pytest.mark.parametrize("name", sorted(set(CompressionArgs.__dataclass_fields__)))
def test_a_flag_without_the_switch_is_refused(name: str) -> None:
    if name.startswith("enable_kvc"):
        return
    default = CompressionArgs.__dataclass_fields__[name].default
    other = {"compression_metric": "knorm", "compression_budget": "uniform"} | {
        "metric_aggregation": "L1-sum",
        "kv_head_bias_path": "x",
        "control_layers": [1],
        "max_cache_tokens": 100,
        "new_token_limit": 5,
    }
    value = other.get(name, not default if isinstance(default, bool) else 0.5)
    if isinstance(default, int) and not isinstance(default, bool):
        value = default + 1
    with pytest.raises(ValueError, match=f"{name} needs enable_kvc"):
        settings_of(**{name: value})


# ---- what one request makes of them -----------------------------------------------------------


def test_a_request_that_says_nothing_takes_the_defaults() -> None:
    made = settings_of(enable_kvc=True, target_compression_rate=0.25)
    assert made is not None
    resolved = made.resolve(SamplingParams(), 100)
    assert resolved == CompressionParams(target_compression_rate=0.25)


def test_nothing_to_compress_is_none() -> None:
    made = CompressionSettings()
    assert made.resolve(SamplingParams(), 100) is None
    assert made.resolve(SamplingParams(protected_window_size=3), 100) is None
    assert made.resolve(SamplingParams(max_cache_tokens=-1), 100) is None
    assert made.resolve(SamplingParams(target_compression_rate=1.0), 100) is None


def test_a_request_overrides_each_default() -> None:
    made = CompressionSettings(CompressionParams(target_compression_rate=0.5), window=16)
    asked = SamplingParams(
        max_cache_tokens=80,
        protected_window_size=20,
        compress_once=True,
        metric_collection_buffer_size=5,
        compression_metric="rkv",
        sinks=4,
        protected_spans=[[3, 9]],
    )
    assert made.resolve(asked, 100) == CompressionParams(
        max_cache_tokens=80,
        target_compression_rate=1.0,
        protected_window_size=20,
        compress_once=True,
        metric_collection_buffer_size=5,
        metric="rkv",
        window=8,
        sinks=4,
        protected_spans=((3, 9),),
    )


def test_a_rate_takes_the_place_of_a_default_size() -> None:
    made = CompressionSettings(CompressionParams(max_cache_tokens=128))
    resolved = made.resolve(SamplingParams(target_compression_rate=0.5), 100)
    assert resolved is not None
    assert (resolved.max_cache_tokens, resolved.target_compression_rate) == (None, 0.5)
    assert made.resolve(SamplingParams(target_compression_rate=1.0), 100) is None


@pytest.mark.parametrize(
    ("metric", "window"),
    [("kvc", 16), ("kvc-full", None), ("snapkv", 16), ("h2o", None), ("tova", 1), ("knorm", 0)],
)
def test_windows(metric: str, window: int | None) -> None:
    made = CompressionSettings(window=16)
    asked = SamplingParams(compression_metric=metric, target_compression_rate=0.5)
    resolved = made.resolve(asked, 100)
    assert resolved is not None and resolved.window == window


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"max_cache_tokens": 32}, "max_cache_tokens"),
        ({"max_cache_tokens": 128, "protected_window_size": 129}, "protected_window_size"),
        ({"metric_collection_buffer_size": 65}, "metric_collection_buffer_size"),
        ({"protected_window_size": 3, "metric_collection_buffer_size": 4}, "metric_collection"),
        ({"max_cache_tokens": 80, "protected_spans": [[90, 101]]}, "protected_spans"),
        ({"max_cache_tokens": 80, "protected_spans": [[0, 17]]}, "protected_spans"),
        ({"max_cache_tokens": 80, "sinks": 17}, "sinks"),
    ],
)
def test_wishes_that_cannot_be_met(given: dict[str, Any], field: str) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        CompressionSettings().resolve(SamplingParams(**given), 100)
    assert str(caught.value.parameter).startswith(field)


def test_a_shared_prefix() -> None:
    sharing = CompressionSettings(share=True)
    asked = {"max_cache_tokens": 80, "shared_prefix_tokens": 99}
    made = sharing.resolve(SamplingParams(**asked), 100)
    assert made is not None and made.shared_prefix_tokens == 99
    for settings, given, says in (
        (CompressionSettings(), {}, "needs an engine with --share-compressed-prefixes"),
        (sharing, {"max_cache_tokens": None}, "needs a request that compresses"),
        (sharing, {"shared_prefix_tokens": 100}, "must be less than the prompt's 100 tokens"),
    ):
        with pytest.raises(VLLMValidationError, match=says) as caught:
            settings.resolve(SamplingParams(**asked | given), 100)
        assert caught.value.parameter == "shared_prefix_tokens"


@pytest.mark.parametrize("name", WISHES)
def test_a_wish_to_an_engine_that_does_not_compress(name: str) -> None:
    values: dict[str, Any] = {
        "compress_once": False,
        "compression_metric": "knorm",
        "protected_spans": [[0, 1]],
    }
    with pytest.raises(VLLMValidationError, match="needs an engine with --enable-kvc") as caught:
        refuse_wishes(SamplingParams(**{name: values.get(name, 1)}))
    assert caught.value.parameter == name
    refuse_wishes(SamplingParams())


# ---- head bias files --------------------------------------------------------------------------


def saved(tmp_path: Any, kind: str = "npz", **arrays: Any) -> str:
    arrays = {"bias": BIAS, "pos_bins": STARTS} | arrays
    path = tmp_path / f"bias.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_head_bias_files(tmp_path: Any, kind: str) -> None:
    read = read_head_bias(saved(tmp_path, kind), 4, 4)
    assert np.array_equal(read.bias, BIAS) and np.array_equal(read.starts, STARTS)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"bias": BIAS[0]}, "must be"),
        ({"bias": BIAS[:3]}, "must be"),
        ({"pos_bins": STARTS[:2]}, "must be"),
        ({"bias": BIAS * np.nan}, "finite"),
        ({"bias": BIAS.astype(np.int32)}, "finite floats"),
        ({"pos_bins": STARTS[::-1].copy()}, "ascending"),
        ({"pos_bins": STARTS.astype(np.float32)}, "ascending integers"),
        ({"bias": np.array([[[None] * 3]])}, "cannot be read"),
    ],
)
def test_head_bias_files_are_checked(tmp_path: Any, arrays: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"kv_head_bias_path.*{says}"):
        read_head_bias(saved(tmp_path, **arrays), 4, 4)


def test_head_bias_files_that_are_none(tmp_path: Any) -> None:
    (tmp_path / "bias.npz").write_bytes(b"not a zip file")
    (tmp_path / "bias.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "bias.pt").write_bytes(b"")
    np.savez(tmp_path / "else.npz", other=BIAS)
    for name in ("bias.npz", "bias.safetensors", "bias.pt", "absent.npz", "else.npz"):
        with pytest.raises(ValueError, match=r"kv_head_bias_path.*cannot be read"):
            read_head_bias(str(tmp_path / name), 4, 4)


def test_a_head_bias_file_that_unpacks_to_much(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("vllm.config.head_bias.MAX_BYTES", 100_000)
    array = io.BytesIO()
    np.save(array, np.zeros((10, 10, 1000)))
    with zipfile.ZipFile(tmp_path / "bias.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bias.npy", array.getvalue())
    assert (tmp_path / "bias.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to more"):
        read_head_bias(str(tmp_path / "bias.npz"), 4, 4)
