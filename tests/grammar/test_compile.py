"""What is compiled, and what is refused with its field named."""

from __future__ import annotations

import json

import pytest

from vllm import VLLMValidationError
from vllm.core.structured import StructuredOutputsParams
from vllm.grammar import compile as compiling
from vllm.grammar import compile_grammar


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    while depth > 1:
        schema, depth = {"items": schema}, depth - 1
    return schema


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, "structured_outputs"),
        ({"json": {}, "regex": "a"}, "structured_outputs"),
        ({"json": 3}, "structured_outputs.json"),
        ({"json": "[1"}, "structured_outputs.json"),
        ({"json": '{}}], "x": [{'}, "structured_outputs.json"),
        ({"json": "[]"}, "structured_outputs.json"),
        ({"json": {"type": "nonsense"}}, "structured_outputs.json"),
        ({"json": {"$ref": "#/nowhere"}}, "structured_outputs.json"),
        ({"json": nested(33)}, "structured_outputs.json"),
        ({"json": {"description": "x" * (64 << 10)}}, "structured_outputs.json"),
        ({"regex": "(a"}, "structured_outputs.regex"),
        ({"regex": "a" * 2049}, "structured_outputs.regex"),
        ({"regex": "\ud800"}, "structured_outputs.regex"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": [""]}, "structured_outputs.choice"),
        ({"choice": [f"{i}" for i in range(1025)]}, "structured_outputs.choice"),
        ({"grammar": "start: nobody"}, "structured_outputs.grammar"),
        ({"structural_tag": "{}"}, "structured_outputs.structural_tag"),
        (
            {"structural_tag": '{"triggers": ["<g"], "structures": [{"begin": "<f", "end": ""}]}'},
            "structured_outputs.structural_tag",
        ),
    ],
)
def test_bad_ones_are_refused(said: dict[str, object], field: str) -> None:
    with pytest.raises(VLLMValidationError) as refused:
        compile_grammar(StructuredOutputsParams(**said))  # type: ignore[arg-type]
    assert refused.value.parameter == field


def test_the_deepest_schema_passes() -> None:
    assert compile_grammar(StructuredOutputsParams(json=nested(32)))


def test_compiled_ones_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "CACHED_BYTES", 1000)
    made: list[object] = []
    real = compiling._compiled
    monkeypatch.setattr(compiling, "_compiled", lambda wish: made.append(wish) or real(wish))
    wishes = [StructuredOutputsParams(json={"const": f"{i:0100}"}) for i in range(8)]
    for wish in wishes:
        assert compile_grammar(wish) == compile_grammar(wish)
    assert len(made) == 8
    assert sum(len(k) + len(v) for k, v in compiling._cache.items()) <= 1000
    compile_grammar(wishes[0])
    assert len(made) == 9, "it was the least recently used"


def test_a_schema_given_as_text_or_object_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    texts = {
        compile_grammar(StructuredOutputsParams(json=schema)),
        compile_grammar(StructuredOutputsParams(json=json.dumps(schema))),
    }
    assert len(texts) == 1
