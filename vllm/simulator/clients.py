"""Simulated clients: who asks what, and when.

Conversations begin as a Poisson process. In the open loop their later turns come at times of their
own, whatever the engine does, and repeat the answers of the data. In the closed loop a turn comes
after the answer before it, and repeats what the engine said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vllm.simulator.conversations import Conversation
from vllm.simulator.run import Ask, Told

Encode = Callable[[str], list[int]]
RATE, THINK = 2.0, 5.0  # conversations a second; mean seconds between the turns of one


@dataclass(frozen=True, slots=True)
class Event:
    """One request of a client."""

    time: float  # seconds
    conversation: str
    turn: int
    mode: str  # single or multi
    workload: str
    prompt: str


def prompt_of(conversation: Conversation, turn: int) -> str:
    """All that was said before, and the question; a single question stands for itself."""
    if conversation.mode == "single":
        return conversation.questions[0]
    return "".join(_turn(conversation, i) for i in range(turn + 1))


def _turn(conversation: Conversation, turn: int) -> str:
    """Turn `turn` with the answer before it, up to where its own answer begins."""
    before = f" {conversation.answers[turn - 1]}\n" if turn else ""
    return f"{before}Human: {conversation.questions[turn]}\nAssistant:"


def events(
    conversations: Iterable[Conversation],
    *,
    rate: float = RATE,
    think: float = THINK,
    seed: int = 0,
) -> list[Event]:
    """Open loop, sorted by time. `think`: mean seconds from a turn to the next."""
    draw, start = random.Random(seed), 0.0
    made = []
    for conversation in conversations:
        start += draw.expovariate(rate)
        time = start
        for turn in range(len(conversation.questions)):
            time += draw.expovariate(1 / think) if turn else 0.0
            made.append(
                Event(
                    time,
                    conversation.name,
                    turn,
                    conversation.mode,
                    conversation.workload,
                    prompt_of(conversation, turn),
                )
            )
    return sorted(made, key=lambda event: event.time)


def asks(told: Iterable[Event], encode: Encode, *, max_tokens: int, longest: int) -> list[Ask]:
    """The events as requests; a prompt above `longest` tokens loses its beginning, as chats do."""
    return [
        Ask(
            event.time,
            encode(event.prompt)[-longest:],
            max_tokens,
            workload=event.workload,
            session=event.conversation,
            mode=event.mode,
            turn=event.turn,
        )
        for event in told
    ]


class ClosedLoop:
    """Clients that wait for an answer, think, and ask again. Give `follow` to `Simulation.run`."""

    def __init__(
        self,
        conversations: Iterable[Conversation],
        encode: Encode,
        *,
        max_tokens: int,
        longest: int,
        rate: float = RATE,
        think: float = THINK,
        seed: int = 0,
    ) -> None:
        self._conversations = {c.name: c for c in conversations}
        self._encode, self._max_tokens, self._longest = encode, max_tokens, longest
        self._rate, self._think = rate, think
        self._draw = random.Random(seed)

    def first(self) -> list[Ask]:
        """Every conversation's first turn."""
        time, made = 0.0, []
        for conversation in self._conversations.values():
            time += self._draw.expovariate(self._rate)
            prompt = self._encode(prompt_of(conversation, 0))
            made.append(self._ask(time, conversation, 0, prompt))
        return made

    def follow(self, told: Told) -> list[Ask]:
        """The next turn of the conversation whose turn has ended; none once it would not fit."""
        if told.finish_reason == "error":
            return []
        conversation = self._conversations[told.ask.session]
        turn = told.ask.turn + 1
        if turn >= len(conversation.questions):
            return []
        question = self._encode(f"\nHuman: {conversation.questions[turn]}\nAssistant:")
        prompt = [*told.ask.prompt, *told.tokens, *question]
        if len(prompt) > self._longest:
            return []
        wait = self._draw.expovariate(1 / self._think)
        return [self._ask(told.finished + wait, conversation, turn, prompt)]

    def _ask(self, time: float, conversation: Conversation, turn: int, prompt: list[int]) -> Ask:
        return Ask(
            time,
            prompt[-self._longest :],
            self._max_tokens,
            workload=conversation.workload,
            session=conversation.name,
            mode=conversation.mode,
            turn=turn,
        )
