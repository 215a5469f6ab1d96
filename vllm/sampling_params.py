"""`SamplingParams`: how one request's tokens are chosen, validated when it is made."""

from __future__ import annotations

import copy
import logging
import math
import os
from enum import IntEnum
from typing import Any

import msgspec

from vllm.core.compression import MAX_SPANS, METRICS
from vllm.core.errors import VLLMValidationError
from vllm.core.structured import StructuredOutputsParams

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01
MAX_N = int(os.environ.get("VLLM_MAX_N_SEQUENCES", "64"))
MAX_EXTRA_BYTES = 64 << 10
MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256
MAX_LOGIT_BIAS = MAX_BAD_WORDS = 1024
INT64 = 2**63 - 1  # what a message to the engine core can hold

_SWITCHES = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)


class RequestOutputKind(IntEnum):
    """What each output of a stream holds: all tokens so far, the new ones, or only the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Sampling parameters by vLLM's names, meanings and defaults.

    Raises VLLMValidationError, naming the field, for a value out of its range. A temperature below
    1e-5 means greedy, one below 0.01 is raised to 0.01. `logprobs=-1` means the whole vocabulary.
    `prompt_logprobs` needs every prompt position's logits, so it reads no cached prefix.

    The fields from max_cache_tokens to shared_prefix_tokens override what the engine compresses by;
    None leaves its default, and max_cache_tokens=-1 is None. See docs/compression.md.
    reference_token_ids: the output is these tokens, whatever the model would say, with the logprobs
    that it gives them (teacher forcing); it ends behind them, whatever max_tokens is.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    skip_reading_prefix_cache: bool | None = None
    max_cache_tokens: int | None = None
    target_compression_rate: float | None = None
    protected_window_size: int | None = None
    compress_once: bool | None = None
    metric_collection_buffer_size: int | None = None
    compression_metric: str | None = None
    sinks: int | None = None
    protected_spans: list[tuple[int, int]] | None = None
    shared_prefix_tokens: int | None = None
    reference_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.stop = _listed("stop", self.stop)
        self.bad_words = _listed("bad_words", self.bad_words)
        self.stop_token_ids = list(dict.fromkeys(_ids("stop_token_ids", self.stop_token_ids or [])))
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _ids("allowed_token_ids", self.allowed_token_ids)
        if self.seed == -1:
            self.seed = None
        if self.logprobs is True:
            self.logprobs = 1
        if self.prompt_logprobs is True:
            self.prompt_logprobs = 1
        if self.logit_bias is not None:
            self.logit_bias = _clamped_bias(self.logit_bias)
        try:
            self.output_kind = RequestOutputKind(self.output_kind)
        except ValueError as error:
            raise VLLMValidationError(
                "output_kind must be a RequestOutputKind",
                parameter="output_kind",
                value=self.output_kind,
            ) from error
        if isinstance(self.structured_outputs, dict):
            self.structured_outputs = structured(self.structured_outputs)
        if self.max_cache_tokens == -1:
            self.max_cache_tokens = None
        self._verify()
        self._verify_compression()
        if self.reference_token_ids is not None:
            self._force_reference(self.reference_token_ids)
        if self.temperature < GREEDY_BELOW:
            if self.n > 1:
                raise VLLMValidationError(
                    f"n must be 1 when sampling greedily, got {self.n}", parameter="n", value=self.n
                )
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
        elif self.temperature < MIN_TEMPERATURE:
            logger.warning(
                "temperature %s is below %s and is raised to it",
                self.temperature,
                MIN_TEMPERATURE,
            )
            self.temperature = MIN_TEMPERATURE
        self.skip_reading_prefix_cache = (
            bool(self.skip_reading_prefix_cache) or self.prompt_logprobs is not None
        )

    def _verify(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _number("temperature", self.temperature, 0.0, 2.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, -1, INT64)
        _number("min_p", self.min_p, 0.0, 1.0)
        _integer("max_tokens", self.max_tokens, 1, INT64, optional=True)
        _integer("min_tokens", self.min_tokens, 0, INT64)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise VLLMValidationError(
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, "
                f"got {self.min_tokens}",
                parameter="min_tokens",
                value=self.min_tokens,
            )
        _integer("logprobs", self.logprobs, -1, INT64, optional=True)
        _integer("prompt_logprobs", self.prompt_logprobs, -1, INT64, optional=True)
        _integer("seed", self.seed, -(2**63), INT64, optional=True)
        self._verify_strings()
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise VLLMValidationError(
                "allowed_token_ids must not be empty", parameter="allowed_token_ids"
            )
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise VLLMValidationError(
                    f"{name} must be true or false", parameter=name, value=getattr(self, name)
                )
        self._verify_extra_args()

    def _verify_strings(self) -> None:
        for name, most in (("stop", MAX_STOP_STRINGS), ("bad_words", MAX_BAD_WORDS)):
            strings = getattr(self, name)
            if len(strings) > most:
                raise VLLMValidationError(
                    f"{name} takes at most {most} strings", parameter=name, value=len(strings)
                )
            for text in strings:
                if not isinstance(text, str) or not text:
                    raise VLLMValidationError(
                        f"{name} must hold non-empty strings", parameter=name, value=text
                    )
                if len(text) > MAX_STOP_LENGTH:
                    raise VLLMValidationError(
                        f"a string in {name} may have at most {MAX_STOP_LENGTH} characters",
                        parameter=name,
                        value=text,
                    )
                if not _is_unicode(text):
                    raise VLLMValidationError(
                        f"a string in {name} is not valid Unicode", parameter=name, value=text
                    )
        if self.stop and not self.detokenize:
            raise VLLMValidationError(
                "stop strings need detokenize=True", parameter="stop", value=self.stop
            )

    def _verify_compression(self) -> None:
        _integer("max_cache_tokens", self.max_cache_tokens, 1, INT64, optional=True)
        if self.target_compression_rate is not None:
            _number("target_compression_rate", self.target_compression_rate, 0, 1, open_low=True)
            if self.max_cache_tokens is not None and self.target_compression_rate < 1:
                raise VLLMValidationError(
                    "target_compression_rate and max_cache_tokens exclude each other",
                    parameter="target_compression_rate",
                    value=self.target_compression_rate,
                )
        for name in ("protected_window_size", "metric_collection_buffer_size", "sinks"):
            _integer(name, getattr(self, name), 0, 2**31 - 1, optional=True)
        _integer("shared_prefix_tokens", self.shared_prefix_tokens, 1, 2**31 - 1, optional=True)
        if self.compress_once is not None and not isinstance(self.compress_once, bool):
            raise VLLMValidationError(
                "compress_once must be true or false",
                parameter="compress_once",
                value=self.compress_once,
            )
        if self.compression_metric is not None and self.compression_metric not in METRICS:
            raise VLLMValidationError(
                f"compression_metric must be one of {', '.join(METRICS)}",
                parameter="compression_metric",
                value=self.compression_metric,
            )
        if self.protected_spans is not None:
            self.protected_spans = _spans("protected_spans", self.protected_spans)

    def _force_reference(self, given: Any) -> None:
        """The output is given, so nothing else may end it or choose it."""
        name = "reference_token_ids"
        self.reference_token_ids = tokens = _ids(name, given)
        if not tokens:
            raise VLLMValidationError(f"{name} must not be empty", parameter=name)
        if self.n != 1:
            raise VLLMValidationError(f"{name} needs n=1", parameter=name)
        for other in ("structured_outputs", "stop", "stop_token_ids"):
            if getattr(self, other):
                raise VLLMValidationError(f"{name} and {other} exclude each other", parameter=name)
        self.ignore_eos, self.logprobs = True, self.logprobs or 0

    def _verify_extra_args(self) -> None:
        if self.extra_args is None:
            return
        try:
            if not isinstance(self.extra_args, dict):
                raise TypeError("not a dict")
            size = len(msgspec.msgpack.encode(self.extra_args))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise VLLMValidationError(
                f"extra_args must be a dict of plain values, with integers of 64 bits: {error}",
                parameter="extra_args",
            ) from error
        if size > MAX_EXTRA_BYTES:
            raise VLLMValidationError(
                f"extra_args may have at most {MAX_EXTRA_BYTES} bytes",
                parameter="extra_args",
                value=size,
            )

    def verify_for(self, vocab_size: int, max_logprobs: int) -> None:
        """Check what depends on the model: token ids in the vocabulary, the server's logprob limit.

        Raises VLLMValidationError.
        """
        for name, ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids),
            ("logit_bias", self.logit_bias),
            ("reference_token_ids", self.reference_token_ids),
        ):
            for token in ids or ():
                if not 0 <= token < vocab_size:
                    raise VLLMValidationError(
                        f"{name} holds token id {token}, which is out of vocabulary "
                        f"(size {vocab_size})",
                        parameter=name,
                        value=token,
                    )
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            if asked is None or max_logprobs == -1:
                continue
            if (vocab_size if asked == -1 else asked) > max_logprobs:
                raise VLLMValidationError(
                    f"{name} is {asked}, above the limit of {max_logprobs} (max_logprobs)",
                    parameter=name,
                    value=asked,
                )

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def clone(self) -> SamplingParams:
        """A copy that shares nothing with this one, verified as a new one is."""
        return msgspec.structs.replace(self, extra_args=copy.deepcopy(self.extra_args))


class BeamSearchParams(msgspec.Struct, kw_only=True):
    """How `LLM.beam_search` searches. Raises VLLMValidationError, naming the field."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _integer("beam_width", self.beam_width, 1, MAX_N)
        _integer("max_tokens", self.max_tokens, 1, INT64)
        _number("temperature", self.temperature, 0.0, 2.0)
        _number("length_penalty", self.length_penalty, -10.0, 10.0)


def structured(given: dict[str, Any]) -> StructuredOutputsParams:
    """Raises VLLMValidationError for unknown fields and for values of the wrong type."""
    try:
        return msgspec.convert(given, StructuredOutputsParams)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, VLLMValidationError):
            raise error.__cause__ from error
        raise VLLMValidationError(
            f"structured_outputs: {error}", parameter="structured_outputs"
        ) from error


def _listed(name: str, given: Any) -> list[str]:
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, (list, tuple, set, frozenset)):
        raise VLLMValidationError(
            f"{name} must be a string or a list of strings", parameter=name, value=given
        )
    return list(given)


def _ids(name: str, given: Any) -> list[int]:
    if not isinstance(given, (list, tuple, set, frozenset)):
        raise VLLMValidationError(
            f"{name} must be a list of token ids", parameter=name, value=given
        )
    for token in given:
        _integer(name, token, 0, 2**31 - 1)
    return list(given)


def _spans(name: str, given: Any) -> list[tuple[int, int]]:
    if not isinstance(given, (list, tuple)) or len(given) > MAX_SPANS:
        raise VLLMValidationError(
            f"{name} must be a list of at most {MAX_SPANS} [start, end) pairs",
            parameter=name,
            value=given,
        )
    for span in given:
        if not isinstance(span, (list, tuple)) or len(span) != 2:
            raise VLLMValidationError(
                f"{name} must hold pairs: [start, end)", parameter=name, value=span
            )
        for end in span:
            _integer(name, end, 0, 2**31 - 1)
        if span[0] >= span[1]:
            raise VLLMValidationError(
                f"{name}: [{span[0]}, {span[1]}) holds no token", parameter=name, value=span
            )
    return [(start, end) for start, end in given]


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clamped_bias(bias: dict[Any, float]) -> dict[int, float]:
    if not isinstance(bias, dict):
        raise VLLMValidationError(
            "logit_bias must map token ids to numbers", parameter="logit_bias", value=bias
        )
    if len(bias) > MAX_LOGIT_BIAS:
        raise VLLMValidationError(
            f"logit_bias takes at most {MAX_LOGIT_BIAS} entries",
            parameter="logit_bias",
            value=len(bias),
        )
    clamped = {}
    for token, value in bias.items():
        try:
            number = float(value)
            clamped[int(token)] = min(100.0, max(-100.0, number))
        except (TypeError, ValueError, OverflowError) as error:
            raise VLLMValidationError(
                "logit_bias must map token ids to numbers", parameter="logit_bias", value=token
            ) from error
        if math.isnan(number):
            raise VLLMValidationError(
                "logit_bias must map token ids to numbers", parameter="logit_bias", value=value
            )
    return clamped


def _integer(
    name: str, value: Any, low: int, high: int | None = None, *, optional: bool = False
) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise VLLMValidationError(f"{name} must be an integer", parameter=name, value=value)
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise VLLMValidationError(
            f"{name} must be {bound}, got {value}", parameter=name, value=value
        )


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise VLLMValidationError(f"{name} must be a number", parameter=name, value=value)
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        left = "(" if open_low else "["
        right = f"{high}]" if math.isfinite(high) else "inf)"
        raise VLLMValidationError(
            f"{name} must be in {left}{low}, {right}, got {value}", parameter=name, value=value
        )
