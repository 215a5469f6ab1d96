"""What vLLM has and this engine has not: refused with its reason, or without effect."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tests.config.given import IDLE_VALUES, REFUSED_VALUES, as_flags, parse
from vllm.config import EngineArgs


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


def test_what_asks_for_nothing_is_accepted() -> None:
    plain = EngineArgs().create_engine_config()
    neutral = {"task": "generate", "runner": "generate", "quantization": None, "lora_modules": []}
    assert EngineArgs(**IDLE_VALUES, **neutral).create_engine_config() == plain
