"""The engine's compression settings, and what one request makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from vllm.config.head_bias import HeadBias
from vllm.core.compression import WISHES, CompressionParams
from vllm.core.errors import VLLMValidationError
from vllm.sampling_params import SamplingParams

AGGREGATIONS = ("L1-sum", "L2-sum", "L1-avg", "L2-avg")
EXPECTED_WINDOW, RKV_WINDOW = 64, 8


@dataclass(frozen=True)
class CompressionSettings:
    """What holds for every request of an engine that compresses; `defaults` may be overridden.

    interval: steps between compressions of a decoding sequence. max_kvs: KVs that one step may
    compress. new_token_limit: compress when the batch has generated so many tokens since the last
    time. share: compressed prefixes are kept for others. window, block, aggregation, max_pool,
    only_prefill: KV-Compress's metric.
    """

    defaults: CompressionParams = field(default_factory=CompressionParams)
    interval: int = 1
    max_kvs: int = 5_000_000
    new_token_limit: int | None = None
    window: int = 32
    block: int = 4096
    aggregation: str = "L2-sum"
    max_pool: bool = True
    only_prefill: bool = False
    value_norm: bool = False
    control_layers: tuple[int, ...] = ()
    share: bool = False
    bias: HeadBias | None = None
    bias_weight: float = 1.0
    seed: int = 0

    def window_of(self, metric: str) -> int | None:
        """How many of the last prompt queries a metric must see. 0: none, None: all of them."""
        return {
            "kvc-diff": self.window,
            "kvc": self.window,
            "kvc-full": None,
            "snapkv": self.window,
            "h2o": None,
            "tova": 1,
            "expected-attention": EXPECTED_WINDOW,
            "rkv": RKV_WINDOW,
        }.get(metric, 0)

    def resolve(self, params: SamplingParams, prompt_len: int) -> CompressionParams | None:
        """The request's wishes over the defaults; None when that comes to keeping everything.

        Raises VLLMValidationError, naming the field.
        """
        given = {n: getattr(params, n) for n in WISHES if getattr(params, n) is not None}
        if "compression_metric" in given:
            given["metric"] = given.pop("compression_metric")
        # A request that says how much to keep one way means that way alone.
        if "max_cache_tokens" in given:
            given.setdefault("target_compression_rate", 1.0)
        elif "target_compression_rate" in given:
            given["max_cache_tokens"] = None
        if "protected_spans" in given:
            given["protected_spans"] = tuple(given["protected_spans"])
        made: CompressionParams = msgspec.structs.replace(self.defaults, **given)
        made = msgspec.structs.replace(made, window=self.window_of(made.metric))
        check(made, set(given))
        for start, end in made.protected_spans:
            if end > prompt_len:
                raise VLLMValidationError(
                    f"protected_spans: [{start}, {end}) goes beyond the prompt's {prompt_len} "
                    "tokens",
                    parameter="protected_spans",
                    value=end,
                )
        most = made.max_cache_tokens
        if most is not None and made.protected_tokens(prompt_len) > most:
            raise VLLMValidationError(
                f"max_cache_tokens is {most}, but sinks, protected_spans and protected_window_size "
                f"together protect {made.protected_tokens(prompt_len)} tokens",
                parameter="protected_spans" if made.protected_spans else "sinks",
            )
        if made.shared_prefix_tokens is not None:
            self._check_shared(made, made.shared_prefix_tokens, prompt_len)
        return None if made.asks_for_nothing else made

    def _check_shared(self, made: CompressionParams, tokens: int, prompt_len: int) -> None:
        """Raises VLLMValidationError for a shared prefix that cannot be, or could not be shared."""
        if not self.share:
            why = "needs an engine with --share-compressed-prefixes"
        elif made.asks_for_nothing:
            why = "needs a request that compresses: max_cache_tokens or target_compression_rate"
        elif tokens >= prompt_len:
            why = f"must be less than the prompt's {prompt_len} tokens, not {tokens}"
        else:
            return
        name = "shared_prefix_tokens"
        raise VLLMValidationError(f"{name} {why}", parameter=name, value=tokens)


def check(params: CompressionParams, given: set[str]) -> None:
    """Raises VLLMValidationError for numbers that cannot go together, naming one of the given."""

    def at_fault(*names: str) -> str:
        return next((name for name in names if name in given), names[0])

    most, window = params.max_cache_tokens, params.protected_window_size
    if most is not None and window > most:
        raise VLLMValidationError(
            f"protected_window_size ({window}) must be at most max_cache_tokens ({most})",
            parameter=at_fault("protected_window_size", "max_cache_tokens"),
        )
    if params.metric_collection_buffer_size > window:
        raise VLLMValidationError(
            f"metric_collection_buffer_size ({params.metric_collection_buffer_size}) must be at "
            f"most protected_window_size ({window}): a KV outside the window that was never "
            "observed would go first",
            parameter=at_fault("metric_collection_buffer_size", "protected_window_size"),
        )


def refuse_wishes(params: SamplingParams) -> None:
    """For an engine that does not compress. Raises VLLMValidationError naming the first wish."""
    for name in WISHES:
        if getattr(params, name) is not None:
            raise VLLMValidationError(
                f"{name} needs an engine with --enable-kvc",
                parameter=name,
                value=getattr(params, name),
            )
