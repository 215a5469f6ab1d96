"""The other programs: what they ask, in which order, and what they make of the answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from examples.agents import (
    crosswords,
    debate,
    gaia,
    map_reduce,
    settings,
    start_server,
    supervisor,
    tool_sessions,
    tree_of_thought,
)

from .fake_model import FakeModel


async def test_debaters_read_the_round_before() -> None:
    model = FakeModel(lambda prompt: f"opinion {len(prompt)}")
    await debate.debate(model, "Q?", ["ann", "bob"], rounds=2)
    first, second, judge = model.asked[:2], model.asked[2:4], model.asked[4]
    assert all("Debater" not in p for p in first)
    for prompt in second:
        assert "Debater 1: opinion" in prompt and "Debater 2: opinion" in prompt
    shared = [p.partition("\nYou are")[0] for p in second]
    assert shared[0] == shared[1], "one transcript, so one prefix"
    assert judge.count("Debater") == 4


async def test_the_best_thought_is_kept() -> None:
    """Attempt 2 is rated 9, the others 1: the path consists of second attempts."""

    def say(prompt: str) -> str:
        if prompt.endswith(tree_of_thought.RATE):
            return "9" if prompt.rpartition("attempt ")[2].startswith("2") else "1"
        return f"step {prompt.rpartition('attempt ')[2][0]}"

    best = await tree_of_thought.search(FakeModel(say), "task", branches=3, depth=2, keep=1)
    assert best.steps == ["step 2", "step 2"]
    assert best.rating == 9


async def test_every_part_is_read_once_a_question() -> None:
    text = "One. Two. Three. Four. Five."
    parts = map_reduce.parts_of(text, 2)
    assert parts == ["One. Two.", "Three. Four.", "Five."]
    model = FakeModel(lambda _: "so")
    assert await map_reduce.answer_all(model, parts, ["a?", "b?"]) == ["so", "so"]
    assert len(model.asked) == 2 * (3 + 1)
    assert sum(p.startswith("user: One. Two.") for p in model.asked) == 2


async def test_sessions_pause_and_ask_for_retention() -> None:
    model = FakeModel(lambda _: "4821.")
    answers = await tool_sessions.sessions(
        model, random.Random(0), 2, calls=3, pause=1.0, retain=30.0
    )
    assert answers == [["4821."] * 3] * 2
    assert model.slept > 0
    assert all(e == {"kv_retention": {"priority": 80, "ttl": 30.0}} for e in model.extra)
    manuals = {p.partition("\nuser")[0] for p in model.asked}
    assert len(manuals) == 1, "the manual is the same for all"


async def test_workers_share_their_instructions() -> None:
    model = FakeModel(lambda _: "1")
    said = await supervisor.supervise(
        model, random.Random(0), workers=4, rounds=2, sentences=30, compress=64
    )
    assert said == ["1", "1"]
    work = [p for p in model.asked if p.startswith("system")]
    assert len(work) == 8
    assert len({p.partition("\nuser")[0] for p in work}) == 1
    assert {"max_cache_tokens": 64} in model.extra
    await supervisor.supervise(
        model, random.Random(0), workers=1, rounds=1, sentences=30, compress=64, share=True
    )
    assert {"max_cache_tokens": 64, "shared_prefix": "system"} in model.extra


async def test_crosswords_are_scored_by_letter() -> None:
    clues, letters = crosswords.OWN[0]
    puzzle = crosswords.Puzzle(clues, letters)
    rows = [letters[i : i + 5] for i in range(0, 25, 5)]
    columns = ["".join(row[i] for row in rows) for i in range(5)]
    assert columns == rows, "ours reads the same down and across"
    assert puzzle.score("\n".join(rows)) == 1.0
    assert puzzle.score("HEART EMBER ABUSE RESIN TRENT") == 24 / 25
    assert puzzle.score("") == 0.0
    model = FakeModel(lambda _: "\n".join(rows))
    _, means = await crosswords.learn(
        model, [puzzle], random.Random(0), iterations=2, batch=3, rate=0.4
    )
    assert means == [1.0, 1.0]


def test_puzzles_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mini.json"
    path.write_text(json.dumps([[["c"] * 10, list("a" * 25)], [["c"] * 9, list("a" * 25)]]))
    with pytest.raises(ValueError, match="puzzle 1"):
        crosswords.read_puzzles(path)


def test_gaia_lines_are_told_when_they_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    lines = [
        {"Question": "q1", "Final answer": "a", "Level": 1},
        {"Question": "q2", "Final answer": "b", "Level": 2},
        {"Question": "q3", "Final answer": "c", "Level": 1, "file_name": "x.png"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n{}\n")
    questions, wrong = gaia.read_questions(path, 1)
    assert [q.text for q in questions] == ["q1"]
    assert len(wrong) == 2 and "line 4" in wrong[0] and "line 5" in wrong[1]
    assert gaia.same(" Yes. ", "yes")


def test_settings_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".env"
    path.write_text("DEFAULT_PORT=9001\nDEFAULT_MODEL=mine\nOTHER=x\nDEFAULT_DEVICE=cpu\n")
    for name in settings.NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEFAULT_MODEL", "theirs")
    read = settings.read(str(path))
    assert (read.port, read.model, read.device) == (9001, "theirs", "cpu")
    assert read.url == "http://127.0.0.1:9001/v1"
    words = start_server.command(read, "warning", ["--block-size", "32"])
    assert words[words.index("serve") + 1] == "theirs"
    assert words[-2:] == ["--block-size", "32"]
    monkeypatch.setenv("DEFAULT_PORT", "many")
    with pytest.raises(ValueError, match="DEFAULT_PORT"):
        settings.read(str(path))
