"""Several agents answer one question by themselves, and vote.

python -m examples.agents.gaia -n 3
python -m examples.agents.gaia --gaia-path metadata.jsonl --level 1

GAIA (Mialon et al., 2023) is not shipped: the file is its `metadata.jsonl`, with `Question`,
`Final answer` and `Level`. Only questions without attachments are asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from examples.agents.chatbot import run
from examples.agents.client import Model, connect
from examples.agents.graph import Agent, Swarm
from examples.agents.settings import add_flags

QUESTION = "The code of amber-fox is 4821. What is the code of amber-fox?"
ASK = "Answer the question with as few words as you can. {question}"


@dataclass(frozen=True)
class Question:
    text: str
    answer: str | None = None


def io_agent(model: Model, temperature: float) -> Agent:
    """Asks the model once, with what its predecessors said."""

    async def speak(task: str, heard: list[str]) -> str:
        others = "".join(f" Somebody says: {words}" for words in heard)
        ask = ASK.format(question=task) + others
        answer = await model.chat(
            [{"role": "user", "content": ask}], max_tokens=64, temperature=temperature
        )
        return answer.text.strip()

    return speak


def swarm(model: Model, count: int, temperature: float) -> Swarm:
    return Swarm({f"io-{i}": io_agent(model, temperature) for i in range(count)})


def read_questions(path: Path, level: int | None) -> tuple[list[Question], list[str]]:
    """Questions without attachments, and what is wrong with lines that cannot be read."""
    questions, wrong = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            if said.get("file_name") or (level is not None and int(said["Level"]) != level):
                continue
            questions.append(Question(str(said["Question"]), str(said["Final answer"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong.append(f"{path}, line {number}: {error!r}")
    return questions, wrong


def same(one: str, other: str) -> bool:
    """Equal but for case, blanks and a full stop at the end."""
    return one.strip().rstrip(".").casefold() == other.strip().rstrip(".").casefold()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("-n", "--num-agents", type=int, default=3)
    parser.add_argument("--profiling", action="store_true", help="Profile the server meanwhile.")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--gaia-path", type=Path)
    parser.add_argument("--level", type=int, choices=(1, 2, 3))
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    questions = [Question(args.question)]
    if args.gaia_path:
        try:
            questions, wrong = read_questions(args.gaia_path, args.level)
        except OSError as error:
            parser.error(str(error))
        for line in wrong:
            print(line, file=sys.stderr)

    async def work() -> None:
        model = connect(args)
        agents = swarm(model, args.num_agents, args.temperature)
        if args.profiling and (status := await model.post("/start_profile")) >= 400:
            raise SystemExit(f"the server does not profile: HTTP {status} for /start_profile")
        right = 0
        for question in tqdm(questions, disable=len(questions) == 1):
            start = time.perf_counter()
            said = await agents.run(question.text)
            answer = agents.decide(said)
            print(f"{answer} ({time.perf_counter() - start:.2f} s)")
            right += question.answer is not None and same(answer, question.answer)
        if args.gaia_path:
            print(f"{right} of {len(questions)} right")
        if args.profiling:
            await model.post("/stop_profile")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
