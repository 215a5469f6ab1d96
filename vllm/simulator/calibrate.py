"""Fits models of latency to steps that were measured on a real engine."""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np

from vllm.config import VllmConfig
from vllm.core.clock import monotonic
from vllm.core.plan import StepPlan, StepResult
from vllm.engine.capacity import Capacity
from vllm.engine.core import ExecutorFactory, Machine
from vllm.engine.llm_engine import LLMEngine
from vllm.sampling_params import SamplingParams
from vllm.simulator.latency import Latency, Linear, Step, Table
from vllm.simulator.run import Ask, Simulation, Told

MIN_STEPS, MIN_CONTEXT = 20, 64
ROUNDS = 8
ODD = 3.0
MIN_NEAR = 3  # steps near a table's point; fewer may all be odd ones
CELLS = 12  # rows and columns of a table, at most
FEATURES = len(Step(0, 0, 0, 0).features())


@dataclass(frozen=True, slots=True)
class Measured:
    step: Step
    seconds: float


def fit_linear(measured: Sequence[Measured]) -> Linear:
    """The `Linear` of the smallest squared relative error, no weight below 0.

    Relative to what is predicted, as a decode step that is off by 5 ms is wrong and a long prefill
    is not; relative to what was measured would favour models that are too fast. Steps that took
    more than ODD times what the others lead to expect, as where another process got the processor,
    do not bend it; but they happen, so all weights are then raised until the sum of all steps is
    right. Raises ValueError for too few steps.
    """
    if len(measured) < MIN_STEPS:
        raise ValueError(f"{len(measured)} steps are too few to fit, {MIN_STEPS} are needed")
    seconds = np.array([m.seconds for m in measured])
    features = np.array([m.step.features() for m in measured])
    predicted, kept = seconds, np.ones(len(seconds), dtype=bool)
    for _ in range(ROUNDS):
        scale = predicted[kept]
        weights = _least_squares(features[kept] / scale[:, None], seconds[kept] / scale)
        predicted = np.maximum(features @ weights, 1e-9)
        kept = seconds < ODD * np.median(seconds / predicted) * predicted
    step, prefill, sequence, kv = map(float, weights * seconds.sum() / predicted.sum())
    return Linear(step=step, prefill=prefill, sequence=sequence, kv=kv)


def _least_squares(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of at least 0. With four, the exact solution is the best subset that is positive."""
    best, least = np.zeros(FEATURES), np.inf
    for chosen in chain.from_iterable(
        combinations(range(FEATURES), size) for size in range(1, FEATURES + 1)
    ):
        columns = list(chosen)
        weights = np.linalg.lstsq(rows[:, columns], target, rcond=None)[0]
        error = float(((rows[:, columns] @ weights - target) ** 2).sum())
        if (weights >= 0).all() and error < least:
            best, least = np.zeros(FEATURES), error
            best[columns] = weights
    return best


def fit_table(measured: Sequence[Measured], linear: Linear) -> Table:
    """A grid over the steps' tokens and KVs: at each point the line, mended by its neighbours.

    The points are quantiles of what was measured; the mend is the median of measured / predicted of
    the steps that are nearest to the point. With too few of them the line's seconds stay. At last
    all are raised until the sum of all steps is right.
    """
    tokens, kvs = (
        np.unique(np.quantile(values, np.linspace(0, 1, CELLS)).round())
        for values in (
            [m.step.tokens for m in measured],
            [m.step.kv_tokens for m in measured],
        )
    )
    ratios: dict[tuple[int, int], list[float]] = {}
    prompts: dict[int, list[float]] = {}  # share of a step's tokens that are a prompt's
    for m in measured:
        at = int(np.abs(tokens - m.step.tokens).argmin())
        cell = at, int(np.abs(kvs - m.step.kv_tokens).argmin())
        ratios.setdefault(cell, []).append(m.seconds / max(linear(m.step), 1e-9))
        prompts.setdefault(at, []).append(m.step.prefill_tokens / m.step.tokens)
    seconds = np.zeros((len(tokens), len(kvs)))
    for i, count in enumerate(tokens):
        share = float(np.mean(prompts.get(i, [0.0])))
        for j, kv in enumerate(kvs):
            prefill = round(count * share)
            near = ratios.get((i, j), [])
            mend = float(np.median(near)) if len(near) >= MIN_NEAR else 1.0
            seconds[i, j] = mend * linear(Step(prefill, int(count) - prefill, int(kv), 0))
    table = Table(tokens, kvs, seconds)
    seconds *= sum(m.seconds for m in measured) / sum(table(m.step) for m in measured)
    return table


def flag(linear: Linear) -> str:
    """As `--simulator-latency` takes it."""
    names = ("step", "prefill", "sequence", "kv")
    return "linear:" + ",".join(f"{name}={getattr(linear, name):.6g}" for name in names)


def table_file(table: Table) -> dict[str, Any]:
    """As `latency.read_table` reads it."""
    return {name: getattr(table, name).tolist() for name in ("tokens", "kv_tokens", "seconds")}


def step_errors(latency: Latency, measured: Sequence[Measured]) -> dict[str, float]:
    """Mean and median of |predicted / measured - 1| of steps; of their sum, with its sign."""
    predicted = np.array([latency(m.step) for m in measured])
    seconds = np.array([m.seconds for m in measured])
    errors = np.abs(predicted / seconds - 1)
    return {
        "step_error": float(errors.mean()),
        "median_step_error": float(np.median(errors)),
        "total_error": float(predicted.sum() / seconds.sum() - 1),
    }


# ---- what is asked -----------------------------------------------------------------------------


def requests(count: int, longest: int, vocab: int, seed: int, shared: float = 0.3) -> list[Ask]:
    """Random prompts and lengths of output, from short to long on a logarithmic scale.

    shared: share of the prompts that begin as one before did, so that cached KVs are read too.
    Raises ValueError for a context of fewer than MIN_CONTEXT tokens.
    """
    if longest < MIN_CONTEXT:
        raise ValueError(f"max_model_len {longest} is too short, {MIN_CONTEXT} are needed")
    draw = random.Random(seed)
    made: list[Ask] = []
    for _ in range(count):
        size = round(4 * (longest * 0.75 / 4) ** draw.random())
        prompt = [draw.randrange(vocab) for _ in range(size)]
        if made and draw.random() < shared:
            base = draw.choice(made).prompt
            prompt[: len(base)] = base[: size - 1]
        most = min(128, longest - size)
        made.append(Ask(0.0, prompt, max(1, round(most ** draw.random()))))
    return made


class Clients:
    """`count` clients, each of which asks the next request once its own is answered."""

    def __init__(self, asks: Sequence[Ask], count: int) -> None:
        self._left = list(reversed(asks))
        self._count = count

    def first(self) -> list[Ask]:
        return [self._left.pop() for _ in range(min(self._count, len(self._left)))]

    def next(self, now: float) -> list[Ask]:
        if not self._left:
            return []
        ask = self._left.pop()
        ask.arrival = now
        return [ask]


def replay(engine: Simulation, asks: Sequence[Ask], count: int) -> list[Told]:
    """The same requests, by so many clients, through a simulated engine."""
    clients = Clients([Ask(0.0, a.prompt, a.max_tokens) for a in asks], count)
    return engine.run(clients.first(), follow=lambda told: clients.next(told.finished))


def run_errors(real: Sequence[Told], simulated: Sequence[Told]) -> dict[str, float]:
    """Of a whole run: predicted / measured - 1 of its means and its duration."""

    def ratio(of: Callable[[Sequence[Told]], float]) -> float:
        return of(simulated) / of(real) - 1

    return {
        "ttft_error": ratio(lambda run: float(np.mean([t.ttft for t in run]))),
        "latency_error": ratio(lambda run: float(np.mean([t.latency for t in run]))),
        "duration_error": ratio(lambda run: max(t.finished for t in run)),
    }


# ---- the real engine ---------------------------------------------------------------------------


class _Watched:
    """An executor whose latest plan can be seen."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.plan: StepPlan | None = None

    def execute(self, plan: StepPlan) -> StepResult:
        self.plan = plan
        return self._machine.execute(plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)


class Real:
    """An engine that computes, with a watch on its steps."""

    def __init__(self, config: VllmConfig, make_executor: ExecutorFactory) -> None:
        """Raises ValueError for what cannot be loaded."""

        def watch(config: VllmConfig, capacity: Capacity) -> Any:
            self._machine = _Watched(make_executor(config, capacity))
            return self._machine

        self._engine = LLMEngine(config, watch)
        self.capacity = self._engine.core.capacity
        self.vocab_size = config.model.vocab_size
        self._numbers = itertools.count()

    def run(self, asks: Sequence[Ask], count: int) -> tuple[list[Told], list[Measured]]:
        """All requests by so many clients, on an empty cache: what became of each, and the steps.

        A step's seconds are all that it took, scheduling and output included.
        """
        clients = Clients(asks, count)
        return self._run(clients.first(), clients.next)

    def play(self, asks: Sequence[Ask]) -> list[Told]:
        """All requests at their arrivals, in wall time, on an empty cache."""
        return self._run(asks, lambda now: [])[0]

    def _run(
        self, asks: Sequence[Ask], follow: Callable[[float], list[Ask]]
    ) -> tuple[list[Told], list[Measured]]:
        self._engine.reset_prefix_cache()
        coming = deque(sorted(asks, key=lambda ask: ask.arrival))
        running: dict[str, Told] = {}
        done: list[Told] = []
        steps: list[Measured] = []
        start = monotonic()
        while running or coming:
            if not running:
                time.sleep(max(0.0, coming[0].arrival - (monotonic() - start)))
            while coming and coming[0].arrival <= monotonic() - start:
                self._add(coming.popleft(), running)
            before, self._machine.plan = monotonic(), None
            outputs = self._engine.step()
            now = monotonic()
            if self._machine.plan is not None and self._machine.plan.seqs:
                steps.append(Measured(Step.of(self._machine.plan), now - before))
            for output in outputs:
                told = running[output.request_id]
                told.first_token = told.first_token or now - start
                told.cached_tokens = output.num_cached_tokens or 0
                if output.finished:
                    told.finished = now - start
                    done.append(running.pop(output.request_id))
                    for ask in follow(told.finished):
                        self._add(ask, running)
        return done, steps

    def _add(self, ask: Ask, running: dict[str, Told]) -> None:
        name = str(next(self._numbers))
        running[name] = Told(ask)
        params = SamplingParams(
            temperature=0, max_tokens=ask.max_tokens, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(name, {"prompt_token_ids": ask.prompt}, params)

    def shutdown(self) -> None:
        self._engine.shutdown()
