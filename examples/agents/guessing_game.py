"""Guess a share of the average (Nagel, 1995): many participants, several rounds, one winner each.

python -m examples.agents.guessing_game --num-participants 20 --num-steps 5

In a round every participant answers with all that it knows of the game so far, and a second call
takes the number out of what it said. The number nearest to `ratio` times the average wins, and all
are told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from examples.agents.chatbot import run
from examples.agents.client import Message, Model, connect
from examples.agents.personas import personas
from examples.agents.settings import add_flags

RULES = (
    "You take part in a game of several rounds. In each round everybody names a whole number from "
    "0 to {most}. Who is nearest to {ratio} of the average of all numbers wins the round. "
    "{persona}"
)
ASK = "Round {round}. Which number do you name?"
ASK_COT = (
    "Round {round}. Which number do you name? Think step by step: what will the others name, and "
    "what follows for you? Name your number at the end."
)
PARSE = "Write only the number that is named here, or none. Text: {text}"
TOLD = "The average was {average:.2f}, {ratio} of it {target:.2f}. {winner} won with {number}."
NUMBER = re.compile(r"\d+")


@dataclass
class Round:
    numbers: list[int | None] = field(default_factory=list)  # None: no valid answer
    average: float | None = None
    target: float | None = None
    winner: int | None = None


@dataclass
class Game:
    """How a game is played. The defaults are the original's."""

    steps: int = 5
    most: int = 100
    ratio: Fraction = Fraction(2, 3)
    temperature: float = 1.0
    think: bool = False
    answer_tokens: int = 64
    number_tokens: int = 8


def number_in(text: str, most: int) -> int | None:
    """The last whole number of the text, if it is in the range."""
    found = NUMBER.findall(text)
    return int(found[-1]) if found and int(found[-1]) <= most else None


async def play(
    model: Model, prompts: list[str], game: Game, progress: tqdm[object] | None = None
) -> list[Round]:
    """All rounds among participants with these personas."""
    histories: list[list[Message]] = [
        [
            {
                "role": "system",
                "content": RULES.format(most=game.most, ratio=game.ratio, persona=prompt),
            }
        ]
        for prompt in prompts
    ]

    async def answer(history: list[Message], number: int) -> int | None:
        ask = (ASK_COT if game.think else ASK).format(round=number)
        history.append({"role": "user", "content": ask})
        said = await model.chat(
            history, max_tokens=game.answer_tokens, temperature=game.temperature
        )
        history.append({"role": "assistant", "content": said.text})
        parse = [{"role": "user", "content": PARSE.format(text=said.text)}]
        parsed = await model.chat(parse, max_tokens=game.number_tokens, temperature=0.0)
        if progress is not None:
            progress.update()
        return number_in(parsed.text, game.most)

    rounds = []
    for number in range(1, game.steps + 1):
        played = Round(await asyncio.gather(*(answer(h, number) for h in histories)))
        _decide(played, game.ratio)
        rounds.append(played)
        if played.winner is None:
            told = "Nobody named a number."
        else:
            told = TOLD.format(
                average=played.average,
                ratio=game.ratio,
                target=played.target,
                winner=f"Participant {played.winner + 1}",
                number=played.numbers[played.winner],
            )
        for history in histories:
            history.append({"role": "user", "content": told})
    return rounds


def _decide(played: Round, ratio: Fraction) -> None:
    valid = [(i, n) for i, n in enumerate(played.numbers) if n is not None]
    if not valid:
        return
    played.average = sum(n for _, n in valid) / len(valid)
    target = played.target = played.average * float(ratio)
    played.winner = min(valid, key=lambda pair: (abs(pair[1] - target), pair[0]))[0]


def read_prompts(path: Path | None, count: int, seed: int) -> list[str]:
    """Personas from a JSON list, or made up. Raises ValueError when there are too few."""
    if path is None:
        return personas(count, seed)
    said = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(said, list) or not all(isinstance(p, str) for p in said):
        raise ValueError(f"{path}: must be a list of texts")
    if len(said) < count:
        raise ValueError(f"{path}: has {len(said)} personas, {count} are needed")
    return said[:count]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--num-participants", type=int, required=True)
    parser.add_argument("--num-steps", type=int, required=True)
    parser.add_argument("--prompt-path", type=Path, help="JSON list of personas; default: made up.")
    parser.add_argument("--max-value", type=int, default=100)
    parser.add_argument("--ratio", type=Fraction, default=Fraction(2, 3))
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--think", action="store_true", help="Ask to think step by step.")
    parser.add_argument("--dump-file", type=Path, help="Write all rounds as JSON.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.num_participants < 1 or args.num_steps < 1:
        parser.error("--num-participants and --num-steps must be at least 1")
    try:
        prompts = read_prompts(args.prompt_path, args.num_participants, args.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    game = Game(
        steps=args.num_steps,
        most=args.max_value,
        ratio=args.ratio,
        temperature=args.temperature,
        think=args.think,
        answer_tokens=300 if args.think else 64,
    )

    async def work() -> None:
        with tqdm(total=len(prompts) * game.steps, unit="answer") as bar:
            rounds = await play(connect(args), prompts, game, bar)
        for number, played in enumerate(rounds, 1):
            if played.winner is None:
                print(f"round {number}: nobody named a number")
                continue
            valid = sum(n is not None for n in played.numbers)
            print(
                f"round {number}: average {played.average:.2f}, target {played.target:.2f}, "
                f"participant {played.winner + 1} won with {played.numbers[played.winner]} "
                f"({valid} of {len(prompts)} answers valid)"
            )
        if args.dump_file:
            said = {"participants": prompts, "rounds": [asdict(r) for r in rounds]}
            args.dump_file.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
