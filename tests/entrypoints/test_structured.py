"""Structured outputs through `LLM`: whatever the model wants, the text is of the language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from vllm import LLM, SamplingParams, VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "maximum": 200, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CODE = r"[A-Z]{2}-\d{3}"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(max_model_len=256, max_num_seqs=8, num_gpu_blocks_override=200)
    yield llm
    llm.shutdown()


def ask(llm: LLM, count: int = 8, **more: object) -> list[str]:
    params = [
        SamplingParams(max_tokens=100, temperature=2.0, seed=seed, **more)  # type: ignore[arg-type]
        for seed in range(count)
    ]
    outputs = llm.generate(["Say something:"] * count, params, use_tqdm=False)
    assert {o.outputs[0].finish_reason for o in outputs} == {"stop"}
    return [o.outputs[0].text for o in outputs]


def test_each_kind(llm: LLM) -> None:
    tight = {"json": PERSON, "disable_any_whitespace": True}
    for text in ask(llm, structured_outputs=tight):
        person = json.loads(text)
        assert set(person) == {"name", "age"} and isinstance(person["age"], int)
    codes = ask(llm, structured_outputs=StructuredOutputsParams(regex=CODE))
    assert all(re.fullmatch(CODE, text) for text in codes)
    assert len(set(codes)) > 2, "the model still has a say"
    assert set(ask(llm, structured_outputs={"choice": ["left", "right"]})) == {"left", "right"}
    grammar = 'root ::= "(" root ")" | "x"'
    for text in ask(llm, structured_outputs={"grammar": grammar}):
        assert re.fullmatch(r"\(*x\)*", text) and text.count("(") == text.count(")")


def test_it_holds_beside_other_rules_and_free_neighbours(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    left = {i: 100.0 for i in range(6, 2816) if "left".startswith(tokenizer.decode([i]) or "-")}
    wish = StructuredOutputsParams(choice=["left", "right"])
    params = [
        SamplingParams(max_tokens=20, temperature=0, structured_outputs=wish),
        SamplingParams(max_tokens=20, temperature=0),
        SamplingParams(max_tokens=20, temperature=0, structured_outputs=wish, bad_words=["left"]),
        SamplingParams(max_tokens=20, structured_outputs=wish, logit_bias=left),
        SamplingParams(max_tokens=20, structured_outputs=wish, allowed_token_ids=[5]),
    ]
    texts = [o.outputs[0].text for o in llm.generate(["So:"] * 5, params, use_tqdm=False)]
    [alone] = llm.generate(["So:"], params[1], use_tqdm=False)
    assert texts[0] in ("left", "right")
    assert texts[1] == alone.outputs[0].text
    assert texts[2] == "right"
    assert texts[3] == "left"
    assert texts[4] == "", "nothing that both allow: an early end, not a wrong text"


def test_preemption_changes_nothing() -> None:
    params = [
        SamplingParams(
            max_tokens=150, temperature=1.0, seed=s, structured_outputs={"regex": "[a-z]{150}"}
        )
        for s in range(6)
    ]
    prompts = [f"Letters {i}:" for i in range(6)]
    told = []
    for blocks in (200, 20):
        llm = LLM(
            max_model_len=192,
            max_num_seqs=6,
            num_gpu_blocks_override=blocks,
            block_size=16,
            disable_log_stats=False,
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        told.append([o.outputs[0].text for o in outputs])
        assert blocks == 200 or any(o.metrics.num_preemptions for o in outputs)
        llm.shutdown()
    assert told[0] == told[1]
    assert all(re.fullmatch("[a-z]{150}", text) for text in told[0])


def test_bad_ones_are_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(VLLMValidationError, match="regex"):
        llm.generate("x", SamplingParams(structured_outputs={"regex": "(a"}), use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="nobody"):
        SamplingParams(structured_outputs={"nobody": 1})
    assert not llm.llm_engine.has_unfinished_requests()
