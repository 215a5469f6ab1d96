"""The guessing game: who wins, what is told, and what of an answer is a number."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from examples.agents.guessing_game import Game, number_in, play, read_prompts
from examples.agents.persona_generator import read_distribution
from examples.agents.personas import JOBS, personas

from .fake_model import FakeModel


@pytest.mark.parametrize(
    ("text", "number"),
    [("I say 20, no, 33.", 33), ("none", None), ("", None), ("101", None), ("100", 100)],
)
def test_the_last_number_in_the_range(text: str, number: int | None) -> None:
    assert number_in(text, 100) == number


async def test_the_nearest_to_the_share_of_the_average_wins() -> None:
    """Numbers 10, 40 and 70: the average is 40, two thirds of it 26.67, nearest is 40."""
    names = {"P1": "10", "P2": "40", "P3": "70", "P4": "no idea"}

    def say(prompt: str) -> str:
        if "Write only the number" in prompt:
            return prompt.rpartition("Text: ")[2]
        return next(number for name, number in names.items() if name in prompt)

    model = FakeModel(say)
    rounds = await play(model, list(names), Game(steps=2, ratio=Fraction(2, 3)))
    assert [r.numbers for r in rounds] == [[10, 40, 70, None]] * 2
    assert rounds[0].average == 40
    assert rounds[0].target == pytest.approx(80 / 3)
    assert rounds[0].winner == 1
    later = [p for p in model.asked if "Round 2" in p]
    assert len(later) == 4
    assert all("Participant 2 won with 40" in p for p in later)
    assert all("user: Round 1" in p for p in later), "the whole history is sent"


async def test_nobody_wins_without_numbers() -> None:
    rounds = await play(FakeModel(lambda _: "?"), ["a", "b"], Game(steps=1))
    assert rounds[0].winner is None and rounds[0].average is None


def test_personas_are_many_and_the_same_again() -> None:
    made = personas(200, 7)
    assert made == personas(200, 7) != personas(200, 8)
    assert len(set(made)) == 200
    assert 550 < sum(map(len, made)) / 200 < 720, "the study's have 631 characters on average"


def test_personas_follow_the_distribution() -> None:
    made = personas(300, 1, {"job": {"pilot": 1, "diver": 0}})
    assert all("pilot" in text for text in made)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(["one", "two"]))
    assert read_prompts(path, 2, 0) == ["one", "two"]
    with pytest.raises(ValueError, match="3 are needed"):
        read_prompts(path, 3, 0)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="list of texts"):
        read_prompts(path, 1, 0)


@pytest.mark.parametrize("text", ["[]", "{}", '{"job": 3}', '{"job": {"a": -1}}', '{"job": {}}'])
def test_a_bad_distribution_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"d\.json"):
        read_distribution(path)
    path.write_text(json.dumps(JOBS))
    assert read_distribution(path) == JOBS
