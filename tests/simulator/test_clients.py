"""Simulated clients, the conversations behind them, and `vllm lab collect`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm import EngineArgs
from vllm.entrypoints.cli.main import main
from vllm.simulator import conversations
from vllm.simulator.clients import ClosedLoop, asks, events
from vllm.simulator.conversations import WORKLOADS, Conversation, generate, read_sharegpt
from vllm.simulator.run import Simulation, Told

ENGINE: dict[str, Any] = {
    "simulator": "random",
    "simulator_clock": "virtual",
    "simulator_model": "llama-3-8b",
    "max_model_len": 2048,
    "num_gpu_blocks_override": 4000,
}


def encode(text: str) -> list[int]:
    return list(text.encode())


def engine(**args: Any) -> Simulation:
    return Simulation(EngineArgs(**ENGINE | args).create_engine_config())


# ---- events ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_conversation_repeats_what_was_said(workload: str) -> None:
    talks = generate(workload, 60, seed=3)
    assert talks == generate(workload, 60, seed=3) != generate(workload, 60, seed=4)
    assert len(talks) == len({talk.name for talk in talks}) == 60
    told = events(talks, rate=4.0, think=2.0, seed=5)
    assert told == events(talks, rate=4.0, think=2.0, seed=5)
    assert [e.time for e in told] == sorted(e.time for e in told)
    assert {e.workload for e in told} == {workload}
    for talk in talks:
        own = [e for e in told if e.conversation == talk.name]
        assert [e.turn for e in own] == list(range(len(talk.questions)))
        assert {e.mode for e in own} == {"multi" if workload == "chat_multi" else "single"}
        assert own[-1].prompt.endswith(("Assistant:", talk.questions[-1]))
        for (turn, before), after in zip(enumerate(own), own[1:], strict=False):
            assert after.prompt.startswith(f"{before.prompt} {talk.answers[turn]}\nHuman: ")
            assert after.time > before.time


def test_arrivals_are_a_poisson_process() -> None:
    """Mean and variance of the gaps, and of the pauses between turns."""
    talks = [Conversation(str(i), "chat_multi", ("a", "b"), ("c", "d")) for i in range(4000)]
    told = events(talks, rate=2.0, think=5.0)
    starts = [e.time for e in told if e.turn == 0]
    gaps = [b - a for a, b in pairwise(starts)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.5, rel=0.06)
    assert sum((g - mean) ** 2 for g in gaps) / len(gaps) == pytest.approx(0.25, rel=0.15)
    by_name = {e.conversation: e.time for e in told if e.turn == 0}
    pauses = [e.time - by_name[e.conversation] for e in told if e.turn == 1]
    assert sum(pauses) / len(pauses) == pytest.approx(5.0, rel=0.06)


def test_a_prompt_that_is_too_long_loses_its_beginning() -> None:
    talks = [Conversation("a", "chat_single", ("abcdefgh",), ("",))]
    [ask] = asks(events(talks), encode, max_tokens=3, longest=5)
    assert ask.prompt == encode("defgh")
    assert (ask.workload, ask.session, ask.mode, ask.turn) == ("chat_single", "a", "single", 0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_closed_loop_waits_and_repeats_the_answers(seed: int) -> None:
    talks = generate("chat_multi", 8, seed)
    sessions: dict[str, list[Told]] = {}

    def run() -> list[Told]:
        loop = ClosedLoop(talks, encode, max_tokens=4, longest=1500, rate=9.0, seed=seed)
        return engine().run(loop.first(), follow=loop.follow)

    done = run()
    assert [(t.ask, t.finished) for t in done] == [(t.ask, t.finished) for t in run()]
    for told in done:
        sessions.setdefault(told.ask.session, []).append(told)
    assert sessions.keys() == {talk.name for talk in talks}
    for talk in talks:
        turns = sessions[talk.name]
        for number, (before, after) in enumerate(pairwise(turns), 1):
            said = [*before.ask.prompt, *before.tokens]
            question = f"\nHuman: {talk.questions[number]}\nAssistant:"
            assert after.ask.prompt == said + encode(question)
            assert after.ask.arrival > before.finished
            assert after.ask.turn == number
            assert after.cached_tokens >= (len(said) - 1) // 16 * 16
        last = turns[-1]
        ended = len(turns) == len(talk.questions)
        following = "" if ended else f"\nHuman: {talk.questions[len(turns)]}\nAssistant:"
        assert ended or len(last.ask.prompt) + 4 + len(encode(following)) > 1500


# ---- ShareGPT ----------------------------------------------------------------------------------


def said(who: str, text: Any) -> dict[str, Any]:
    return {"from": who, "value": text}


ENTRIES: list[Any] = [
    {"id": "a", "conversations": [said("human", "one"), said("gpt", "two")]},
    "no object",
    {"id": "a", "conversations": [said("gpt", "x"), said("human", "three"), said("gpt", "four"),
                                  said("human", "five")]},
    {"conversations": [said("human", 5)]},
    {"conversations": [said("gpt", "alone")]},
    {"input": "six", "output_length": 3},
    {"input": "  "},
]  # fmt: skip


def test_sharegpt_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(ENTRIES))
    single = read_sharegpt(path, "chat_single", 10)
    assert [c.questions for c in single.found] == [("one",), ("three",), ("six",)]
    assert [number for number, _ in single.refused] == [1, 3, 4, 6]
    assert len({c.name for c in single.found}) == 3, "one id twice is two conversations"
    multi = read_sharegpt(path, "chat_multi", 10)
    assert [(c.questions, c.answers) for c in multi.found] == [(("three", "five"), ("four", ""))]
    assert len(read_sharegpt(path, "chat_single", 2).found) == 2


@pytest.mark.parametrize(
    ("text", "workload", "says"),
    [
        ("{}", "chat_multi", "list"),
        ("[", "chat_multi", "cannot read"),
        ("[]", "chat_multi", "no conversations"),
        ('[{"input": "a"}]', "chat_multi", "no conversations"),
        ("[]", "qa", "qa cannot"),
    ],
)
def test_what_is_no_sharegpt_is_told(tmp_path: Path, text: str, workload: str, says: str) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_sharegpt(path, workload, 10)


def test_the_hub_gives_the_file_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(*what: Any, **how: Any) -> str:
        asked.append((what, how))
        if len(asked) > 1:
            raise ConnectionError("no network")
        return str(tmp_path / "got.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert conversations.hub_file() == tmp_path / "got.json"
    assert asked[0][1] == {"repo_type": "dataset"}
    with pytest.raises(ValueError, match="no network"):
        conversations.hub_file()


# ---- collect -----------------------------------------------------------------------------------


def test_collect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are the study's, the table is what they say, and its findings come out."""
    words = ["lab", "collect", "--out", str(tmp_path / "out"), "--json", "--conversations", "30"]
    assert main([*words, "--block-sizes", "16,64"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 8
    reuse = {}
    for row in rows:
        workload, size = row["workload"], row["block_size"]
        prefix = tmp_path / "out" / f"prefix_{workload}_b{size}"
        requests, blocks = (
            [json.loads(line) for line in Path(f"{prefix}_{what}.jsonl").read_text().splitlines()]
            for what in ("requests", "blocks")
        )
        assert len(requests) == row["requests"]
        assert {r["workload"] for r in requests} == {workload}
        assert sum(r["reused_tokens"] for r in requests) == row["reused_tokens"]
        assert sum(b["cached_hits"] for b in blocks) * size == row["reused_tokens"]
        reuse[workload, size] = row["token_hit_rate"]
    assert reuse["chat_single", 16] < 0.01 and reuse["summarization", 16] < 0.05
    assert 0.4 < reuse["chat_multi", 16] < 0.8 and 0.6 < reuse["qa", 16] < 0.9
    for workload in WORKLOADS:
        assert reuse[workload, 64] <= reuse[workload, 16]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rate", "0"], "rate"),
        (["--rate", "nan"], "rate"),
        (["--conversations", "0"], "conversations"),
        (["--max-tokens", "9000"], "max_tokens"),
        (["--workloads", "poems"], "poems"),
        (["--block-sizes", "0"], "block-sizes"),
        (["--sharegpt", "/nowhere"], "nowhere"),
        (["--simulator-model", "no-such"], "no-such"),
    ],
)
def test_collect_says_what_it_cannot_do(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lab", "collect", "--out", str(tmp_path), *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
