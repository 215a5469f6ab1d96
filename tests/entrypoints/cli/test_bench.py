"""The benchmarks' datasets, arrival times and goals; they take their tokenizer from the tests."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.cli import bench_datasets, bench_serve
from vllm.entrypoints.cli.bench_client import Answer, Target
from vllm.entrypoints.cli.bench_datasets import Sample
from vllm.entrypoints.cli.bench_result import meets, parse_goals


def parse(*words: str) -> Any:
    args = bench_serve.make_parser().parse_args(list(words))
    bench_serve._check(args)
    return args


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer(tokenizer_folder)


def taken(tokenizer: Tokenizer, count: int, *words: str) -> list[Sample]:
    return bench_datasets.samples(parse(*words), tokenizer, count)


def test_random_lengths(tokenizer: Tokenizer) -> None:
    words = ["--random-input-len", "20", "--output-len", "10", "--random-prefix-len", "7"]
    plain = taken(tokenizer, 5, *words)
    assert [(len(s.prompt), s.output_len) for s in plain] == [(27, 10)] * 5
    assert len({tuple(s.prompt[:7]) for s in plain}) == 1
    assert len({tuple(s.prompt) for s in plain}) == 5
    varied = taken(tokenizer, 200, *words, "--random-range-ratio", "0.5")
    assert {len(s.prompt) for s in varied} == {7 + n for n in range(10, 31)}
    assert {s.output_len for s in varied} == set(range(5, 16))
    assert taken(tokenizer, 200, *words, "--random-range-ratio", "0.5") == varied
    assert taken(tokenizer, 5, *words, "--seed", "1") != plain


def test_prefixes_repeat(tokenizer: Tokenizer) -> None:
    words = ["--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", "9"]
    words += ["--prefix-repetition-suffix-len", "4", "--prefix-repetition-num-prefixes", "3"]
    found = taken(tokenizer, 10, *words, "--prefix-repetition-output-len", "6")
    prefixes = Counter(tuple(s.prompt[:9]) for s in found)
    assert sorted(prefixes.values()) == [3, 3, 4]
    assert len({tuple(s.prompt) for s in found}) == 10
    assert {(len(s.prompt), s.output_len) for s in found} == {(13, 6)}


def conversation(*texts: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text} for text in texts]}


def test_sharegpt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    question, answer = "What is the code of it", "The code of it is this"
    path = tmp_path / "sharegpt.json"
    bad: list[Any] = [7, {}, conversation(question), conversation(question, 3)]
    bad += [conversation("What", answer), conversation(question, "is")]
    bad += [conversation("What " * 1100, answer), conversation(question, "is " * 2100)]
    path.write_text(json.dumps([*bad, conversation(question, answer, "more")]))
    words = ["--dataset-name", "sharegpt", "--dataset-path", str(path)]
    asked = len(tokenizer.encode(answer))
    assert taken(tokenizer, 3, *words) == [Sample(question, asked)] * 3
    assert len(taken(tokenizer, 3, *words, "--no-oversample")) == 1
    assert taken(tokenizer, 1, *words, "--sharegpt-output-len", "8") == [Sample(question, 8)]


def test_custom(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "custom.jsonl"
    lines = [{"prompt": f"The code {i}", "output_tokens": i + 1} for i in range(4)]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    words = ["--dataset-name", "custom", "--dataset-path", str(path), "--disable-shuffle"]
    plain = taken(tokenizer, 3, *words, "--custom-skip-chat-template")
    assert plain == [Sample(f"The code {i}", 256) for i in range(3)]
    chat = taken(tokenizer, 1, *words, "--custom-output-len", "-1")[0]
    text = tokenizer.decode(chat.prompt, skip_special_tokens=False)  # type: ignore[arg-type]
    assert (text, chat.output_len) == ("<|bos|><|user|>The code 0<|end|><|assistant|>", 1)
    assert taken(tokenizer, 1, *words, "--backend", "openai-chat") == [Sample("The code 0", 256)]


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        (None, ["--dataset-name", "custom"], "needs --dataset-path"),
        ('{"prompt": 3}', ["--dataset-name", "custom"], "line 1: prompt must be text"),
        ('{"prompt": "a"}\n{', ["--dataset-name", "custom"], "line 2"),
        ('{"prompt": "a"}', ["--dataset-name", "custom", "--custom-output-len", "-1"], "output_to"),
        ("", ["--dataset-name", "custom"], "nothing in it"),
        ("{}", ["--dataset-name", "sharegpt"], "list of conversations"),
        ("[", ["--dataset-name", "sharegpt"], "sharegpt.*"),
        ("[3]", ["--dataset-name", "sharegpt"], "nothing in it"),
        (None, ["--random-range-ratio", "1.5"], "--random-range-ratio"),
    ],
)
def test_bad_datasets(
    tokenizer: Tokenizer, tmp_path: Path, content: str | None, words: list[str], says: str
) -> None:
    if content is not None:
        path = tmp_path / "sharegpt.json"
        path.write_text(content)
        words = [*words, "--dataset-path", str(path)]
    with pytest.raises(ValueError, match=says):
        taken(tokenizer, 2, *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--goodput ttft", "ttft"),
        ("--goodput itl:3", "itl:3"),
        ("--goodput ttft:x", "number of milliseconds"),
        ("--goodput ttft:nan", "at least 0"),
        ("--ramp-up-start-rps 3", "--ramp-up-strategy"),
        ("--ramp-up-strategy linear --ramp-up-start-rps 0 --ramp-up-end-rps 3", "needs"),
        ("--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 3 --request-rate 1",
         "exclude"),
        ("--header a", "NAME=VALUE"),
        ("--metadata =a", "NAME=VALUE"),
        ("--metric-percentiles 101", "between 0 and 100"),
    ],
)  # fmt: skip
def test_bad_flags(words: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(*words.split())


def test_goals() -> None:
    goals = parse_goals(["ttft:100", "tpot:10", "e2el:1000"])
    good = Answer(ttft=0.1, latency=0.2, output_tokens=11)
    assert meets(good, goals)
    assert not meets(Answer(ttft=0.11, latency=0.2, output_tokens=11), goals)
    assert not meets(Answer(ttft=0.1, latency=0.3, output_tokens=11), goals)
    assert not meets(Answer(ttft=0.1, latency=1.1, output_tokens=1), goals)
    assert meets(Answer(ttft=0.1, latency=0.1, output_tokens=1), goals)


def test_arrivals_are_at_the_rate() -> None:
    assert list(bench_serve.arrivals(parse(), 3)) == [0.0, 0.0, 0.0]
    steady = list(bench_serve.arrivals(parse("--request-rate", "50"), 4001))
    assert steady[-1] == pytest.approx(80, rel=0.05)
    ramp = ["--ramp-up-start-rps", "10", "--ramp-up-end-rps", "1000", "--ramp-up-strategy"]
    for kind in ("linear", "exponential"):
        times = list(bench_serve.arrivals(parse(*ramp, kind), 4001))
        first, last = times[200] - times[0], times[-1] - times[-201]
        assert 5 < first / last < 150
        assert times == sorted(times)


def test_bodies_carry_what_was_said() -> None:
    args = parse("--top-p", "0.5", "--top-k", "7", "--ignore-eos", "--extra-body", '{"n": 2}')
    extra = bench_serve._extra(args)
    assert extra == {"temperature": 0.0, "top_p": 0.5, "top_k": 7, "ignore_eos": True, "n": 2}
    body = Target("u", "m", True, extra).body(Sample("hi", 9))
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["max_tokens"], body["n"]) == (9, 2)
