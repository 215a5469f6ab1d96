"""`SamplingParams`: what is refused names its field, what is taken is made regular."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec
import pytest

from vllm.core.errors import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams

DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": [],
    "structured_outputs": None,
    "skip_reading_prefix_cache": False,
    "max_cache_tokens": None,
    "target_compression_rate": None,
    "protected_window_size": None,
    "compress_once": None,
    "metric_collection_buffer_size": None,
    "compression_metric": None,
    "sinks": None,
    "protected_spans": None,
    "shared_prefix_tokens": None,
    "reference_token_ids": None,
    "extra_args": None,
}


def test_defaults() -> None:
    assert msgspec.structs.asdict(SamplingParams()) == DEFAULTS


REFUSED: list[tuple[str, Any]] = [
    *[("n", v) for v in (0, -1, 65, 1.0, True, "1", None)],
    *[("presence_penalty", v) for v in (-2.01, 2.01, math.nan, "0", None)],
    *[("frequency_penalty", v) for v in (-2.01, 2.01, math.inf, True)],
    *[("repetition_penalty", v) for v in (0, -1, math.inf, math.nan)],
    *[("temperature", v) for v in (-0.1, 2.01, math.nan, math.inf, None, "hot")],
    *[("top_p", v) for v in (0, -0.1, 1.01, math.nan)],
    *[("top_k", v) for v in (-2, 1.5, True, 2**63)],
    *[("min_p", v) for v in (-0.01, 1.01, math.nan)],
    *[("max_tokens", v) for v in (0, -1, 1.0, 10**30)],
    *[("min_tokens", v) for v in (-1, 17, 0.5, None)],
    *[("logprobs", v) for v in (-2, 1.5, False, 2**64)],
    *[("prompt_logprobs", v) for v in (-2, "1", 2**64)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 1.5, "7")],
    *[("stop", v) for v in ("", [""], ["a", ""], [1], 5, ["a"] * 17, "a" * 257, "\ud800")],
    *[("stop_token_ids", v) for v in (5, "12", [-1], [1.5], [[1]], [2**31], [True])],
    *[("allowed_token_ids", v) for v in ([], 5, [-1], ["a"], [[1]])],
    *[("bad_words", v) for v in ([""], [1], 5, ["a"] * 1025, "a" * 257, ["\ud800"])],
    *[("logit_bias", v) for v in ([1], {"x": 1}, {1: "much"}, {1: math.nan}, {1: None})],
    *[("max_cache_tokens", v) for v in (0, -2, 1.5, True, 2**63)],
    *[("target_compression_rate", v) for v in (0, -0.5, 1.01, "1", math.nan)],
    *[("protected_window_size", v) for v in (-1, 0.5, 2**31)],
    *[("metric_collection_buffer_size", v) for v in (-1, "1")],
    *[("sinks", v) for v in (-1, True)],
    *[("compress_once", v) for v in (1, "yes")],
    *[("compression_metric", v) for v in ("best", 5, "")],
    *[("shared_prefix_tokens", v) for v in (0, -1, 1.5, True, "1", 2**31)],
    *[("protected_spans", v) for v in (5, [1], [[1]], [[1, 2, 3]], [[2, 2]], [[3, 1]], [[-1, 2]])],
    *[("protected_spans", v) for v in ([["a", "b"]], [[0, 2**31]], [[0, 1]] * 65)],
    *[("reference_token_ids", v) for v in ([], 5, [-1], ["a"], "12")],
    ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    *[("extra_args", v) for v in ([1], {"a": 2**64}, {"a": object()}, {"a": {"b": -(2**64)}})],
    *[("output_kind", v) for v in (3, "delta", None)],
    *[("ignore_eos", v) for v in ("no", 1, None)],
    *[("detokenize", v) for v in (0, None)],
    *[("skip_special_tokens", v) for v in (1, None)],
    *[("include_stop_str_in_output", v) for v in ("yes", None)],
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda v: repr(v)[:30])
def test_a_value_out_of_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name
    assert name in caught.value.message
    assert f"(parameter={name}" in str(caught.value)
    assert len(str(caught.value)) < 400


TAKEN: list[tuple[str, Any, Any]] = [
    ("n", 64, 64),
    ("presence_penalty", -2, -2),
    ("frequency_penalty", 2.0, 2.0),
    ("repetition_penalty", 1e-3, 1e-3),
    ("temperature", 2, 2),
    ("temperature", 0.005, 0.01),
    ("temperature", 0.01, 0.01),
    ("top_p", 1e-9, 1e-9),
    ("top_k", -1, -1),
    ("min_p", 1, 1),
    ("max_tokens", None, None),
    ("max_tokens", sys.maxsize, sys.maxsize),
    ("min_tokens", 16, 16),
    ("logprobs", True, 1),
    ("logprobs", 0, 0),
    ("logprobs", -1, -1),
    ("prompt_logprobs", True, 1),
    ("seed", -1, None),
    ("seed", 0, 0),
    ("seed", -5, -5),
    ("stop", "end", ["end"]),
    ("stop", ("a", "b"), ["a", "b"]),
    ("stop_token_ids", [3, 1, 3, 1], [3, 1]),
    ("bad_words", "word", ["word"]),
    ("allowed_token_ids", (4, 2), [4, 2]),
    ("logit_bias", {"7": 150, 8: -1000, 9: 0.5}, {7: 100.0, 8: -100.0, 9: 0.5}),
    ("logit_bias", {7: math.inf}, {7: 100.0}),
    ("output_kind", 2, RequestOutputKind.FINAL_ONLY),
    ("skip_reading_prefix_cache", True, True),
    ("extra_args", {"a": [1, {"b": 2**63}]}, {"a": [1, {"b": 2**63}]}),
]


@pytest.mark.parametrize(("name", "given", "kept"), TAKEN, ids=lambda v: repr(v)[:30])
def test_what_is_taken_is_made_regular(name: str, given: Any, kept: Any) -> None:
    value = getattr(SamplingParams(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)


def test_what_was_given_is_not_changed_and_not_shared() -> None:
    stop, ids, bias, words = ["a"], [1, 1], {"1": 200}, ["w"]
    params = SamplingParams(stop=stop, stop_token_ids=ids, logit_bias=bias, bad_words=words)
    assert (stop, ids, bias, words) == (["a"], [1, 1], {"1": 200}, ["w"])
    stop.append("b")
    assert params.stop == ["a"]


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)
    with pytest.raises(TypeError):
        SamplingParams(1)


def test_greedy_takes_one_output_and_forgets_what_shapes_chance() -> None:
    for temperature in (0, 0.0, 9e-6):
        params = SamplingParams(temperature=temperature, top_p=0.5, top_k=3, min_p=0.2)
        assert params.greedy
        assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)
        with pytest.raises(VLLMValidationError) as caught:
            SamplingParams(temperature=temperature, n=2)
        assert caught.value.parameter == "n"
    assert not SamplingParams(temperature=1e-5).greedy


def test_a_temperature_that_is_raised_is_told(caplog: pytest.LogCaptureFixture) -> None:
    SamplingParams(temperature=0.002)
    assert "0.002" in caplog.text


def test_stop_strings_need_text() -> None:
    with pytest.raises(VLLMValidationError) as caught:
        SamplingParams(stop="a", detokenize=False)
    assert caught.value.parameter == "stop"
    SamplingParams(stop_token_ids=[1], detokenize=False)


def test_min_tokens_is_measured_against_max_tokens() -> None:
    assert SamplingParams(min_tokens=99, max_tokens=None).min_tokens == 99
    with pytest.raises(VLLMValidationError, match="max_tokens=5"):
        SamplingParams(min_tokens=6, max_tokens=5)


def test_prompt_logprobs_never_read_the_prefix_cache() -> None:
    assert SamplingParams(prompt_logprobs=0).skip_reading_prefix_cache is True
    # Not even when somebody says so, or asks for them later: cached positions have no logits.
    asked = SamplingParams(prompt_logprobs=0, skip_reading_prefix_cache=False)
    assert asked.skip_reading_prefix_cache is True
    later = SamplingParams()
    later.prompt_logprobs = 3
    assert later.clone().skip_reading_prefix_cache is True


def full() -> SamplingParams:
    return SamplingParams(
        n=3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        temperature=0.7,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        seed=-(2**63),
        stop=["a", "b"],
        stop_token_ids=[5],
        ignore_eos=True,
        max_tokens=30,
        min_tokens=2,
        logprobs=2,
        prompt_logprobs=0,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        include_stop_str_in_output=True,
        output_kind=RequestOutputKind.DELTA,
        logit_bias={4: 1.5},
        allowed_token_ids=[4, 5],
        bad_words=["no"],
        structured_outputs={"choice": ["yes", "no"]},
        skip_reading_prefix_cache=True,
        max_cache_tokens=200,
        target_compression_rate=1.0,
        protected_window_size=20,
        compress_once=True,
        metric_collection_buffer_size=3,
        compression_metric="knorm",
        sinks=4,
        protected_spans=[(1, 3)],
        shared_prefix_tokens=7,
        extra_args={"x": {"y": [1, 2.5, "z", None]}},
    )


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(reference_token_ids=[3]),
        full(),
    ],
)
def test_msgpack_round_trip(params: SamplingParams) -> None:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert decoded == params
    assert type(decoded.output_kind) is RequestOutputKind


def test_every_field_survives_the_round_trip() -> None:
    """`full` differs from the defaults in every field, so none is left out of the message."""
    same = {n for n, v in msgspec.structs.asdict(full()).items() if v == DEFAULTS[n]}
    assert same == {"detokenize", "reference_token_ids"}


def test_a_bad_message_is_refused_too() -> None:
    message = msgspec.msgpack.encode({"top_p": 7.0})
    with pytest.raises(msgspec.ValidationError, match="top_p"):
        msgspec.msgpack.decode(message, type=SamplingParams)


def test_a_clone_shares_nothing() -> None:
    params = full()
    copy = params.clone()
    assert copy == params
    for name, value in msgspec.structs.asdict(copy).items():
        if isinstance(value, (list, dict)):
            assert value is not getattr(params, name), name
    copy.extra_args["x"]["y"].append(3)
    assert len(params.extra_args["x"]["y"]) == 4


def test_what_depends_on_the_model() -> None:
    SamplingParams(stop_token_ids=[9], logit_bias={0: 1}, logprobs=20).verify_for(10, 20)
    SamplingParams(logprobs=-1, prompt_logprobs=500).verify_for(10, -1)
    SamplingParams(logprobs=-1).verify_for(20, 20)
    for name, given in {
        "stop_token_ids": [3, 10],
        "allowed_token_ids": [10],
        "logit_bias": {10: 1.0},
        "logprobs": 21,
        "prompt_logprobs": -1,
    }.items():
        with pytest.raises(VLLMValidationError) as caught:
            SamplingParams(**{name: given}).verify_for(10 if name != "prompt_logprobs" else 21, 20)
        assert caught.value.parameter == name
    with pytest.raises(VLLMValidationError, match="out of vocabulary"):
        SamplingParams(logit_bias={-1: 1.0}).verify_for(10, 20)


def test_an_echoed_value_is_cut() -> None:
    error = VLLMValidationError("no", parameter="stop", value="x" * 10_000)
    assert len(str(error)) < 200
    assert isinstance(error, ValueError)


def test_compression_wishes() -> None:
    params = SamplingParams(max_cache_tokens=-1, protected_spans=((1, 4), [5, 9]))
    assert params.max_cache_tokens is None
    assert params.protected_spans == [(1, 4), (5, 9)]
    assert params.clone() == params
    with pytest.raises(VLLMValidationError, match="exclude each other") as caught:
        SamplingParams(max_cache_tokens=128, target_compression_rate=0.5)
    assert caught.value.parameter == "target_compression_rate"
    SamplingParams(max_cache_tokens=128, target_compression_rate=1.0)


def test_reference_tokens_are_the_whole_output() -> None:
    params = SamplingParams(reference_token_ids=[5, 6])
    assert params.ignore_eos and params.logprobs == 0
    assert SamplingParams(reference_token_ids=[5], logprobs=3).logprobs == 3
    for other in (
        {"n": 2},
        {"structured_outputs": {"regex": "a"}},
        {"stop": "a"},
        {"stop_token_ids": [6]},
    ):
        with pytest.raises(VLLMValidationError) as caught:
            SamplingParams(reference_token_ids=[5], **other)
        assert caught.value.parameter == "reference_token_ids"
    with pytest.raises(VLLMValidationError, match="out of vocabulary") as caught:
        SamplingParams(reference_token_ids=[100]).verify_for(100, 20)
    assert caught.value.parameter == "reference_token_ids"
