"""The plain simulated engine, over arrays: the same results as `Simulation`'s, much sooner.

The steps are in `kernel`; here are requests with their tokens and keys. Needs numba
(`pip install vllm[lab]`).
"""

from __future__ import annotations

import math

import numpy as np

from vllm.config import VllmConfig
from vllm.core.splitmix import mixed, stream
from vllm.engine.capacity import capacity
from vllm.kv.lineage import Lineage, root
from vllm.scheduler.tokens import Tokens
from vllm.simulator import kernel
from vllm.simulator.executor import spoken
from vllm.simulator.latency import Constant, Latency, Linear, Roofline, parse
from vllm.simulator.run import Ask, Told, plain, room_for

ROOM = 1024  # entries of an array at the beginning


class ArrayEngine:
    """A `run.Replica`. For requests of one output each that end with their last token."""

    def __init__(self, config: VllmConfig, number: int = 0) -> None:
        """Raises ValueError for a configuration that is not so plain, or a latency model."""
        if not plain(config) or config.simulator is None:
            raise ValueError("only a plain engine in virtual time can be simulated over arrays")
        self.number = number
        size = capacity(config)
        self._longest, self._block_size = size.max_model_len, size.spec.block_size
        self._num_blocks, self._caching = size.num_blocks, config.cache.enable_prefix_caching
        self._seed, self._vocab = config.model.seed, spoken(config.model)
        self._numbers: dict[bytes, int] = {}  # of keys, from 1 on
        self._told: dict[int, Told] = {}
        most, chunk = config.scheduler.max_num_seqs, config.scheduler.long_prefill_token_threshold
        self._state = kernel.State(
            counts=np.zeros(1, kernel.COUNTS),
            sequences=np.zeros(ROOM, kernel.SEQUENCES),
            keys=np.zeros(ROOM, kernel.KEYS),
            names=np.zeros(ROOM, np.int32),
            copies=np.zeros(ROOM, np.int8),
            running=np.zeros(most, np.int32),
            back=np.zeros(most, np.int32),
            rows=np.zeros(most, np.int32),
            shares=np.zeros(most, np.int64),
            ended=np.zeros(most, np.int32),
            latency=_weights(parse(config.simulator.latency, config.model)),
        )
        counts = self._state.counts
        counts["free"], counts["block_size"] = self._num_blocks, self._block_size
        counts["budget"], counts["most"] = config.scheduler.max_num_batched_tokens, most
        whole = counts["whole"] = not config.scheduler.enable_chunked_prefill
        counts["chunk"] = np.iinfo(np.int64).max if whole or not chunk else chunk
        counts["caching"] = self._caching
        self._now, self._running, self._ended = counts["now"], counts["running"], counts["ended"]
        self._added, self._fresh, self._back = counts["added"], counts["fresh"], counts["back"]
        self._places = 0  # in `names` that are taken

    @property
    def now(self) -> float:
        return float(self._now[0])

    @property
    def busy_seconds(self) -> float:
        return float(self._state.counts["busy"][0])

    @property
    def steps(self) -> int:
        return int(self._state.counts["steps"][0])

    @property
    def has_work(self) -> bool:
        return bool(self._told)

    @property
    def requests(self) -> int:
        return len(self._told)

    @property
    def tokens_ahead(self) -> int:
        """That those who run or wait have not computed."""
        here = self._state.sequences[self._here()]
        return int((here["length"] - here["computed"]).sum())

    def _here(self) -> np.ndarray:
        fresh = np.arange(self._fresh[0], self._added[0])
        running, back = self._running[0], self._back[0]
        return np.concatenate([self._state.running[:running], self._state.back[:back], fresh])

    def cached_tokens(self, ask: Ask) -> int:
        """Of its prompt, in whole blocks, but for the last token."""
        most = (len(ask.prompt) - 1) // self._block_size if self._caching else 0
        there, found = self._state.keys["there"], 0
        for key in ask.keys[:most] or self._lineage(ask, Tokens(ask.prompt), most).keys():
            number = self._numbers.get(key)
            if number is None or not there[number]:
                break
            found += 1
        return found * self._block_size

    def _lineage(self, ask: Ask, tokens: Tokens, blocks: int) -> Lineage:
        lineage = Lineage(root(b"", ask.salt), self._block_size)
        lineage.begin(ask.keys)
        lineage.extend(tokens, blocks)
        return lineage

    def add(self, ask: Ask) -> None:
        """As `Simulation.add`."""
        prompt = len(ask.prompt)
        length = min(ask.max_tokens, room_for(ask, self._longest))
        if not self.has_work:
            self._now[0] = max(self._now[0], ask.arrival)
        s, goal = int(self._added[0]), prompt + length
        tokens = Tokens(ask.prompt)
        said = stream(mixed((self._seed << 32) + s + 1), 0, length, self._vocab)
        tokens.output.frombytes(said.tobytes())
        first, places = self._places, -(-goal // self._block_size)
        self._make_room(s + 1, first + places)
        if self._caching:
            full, numbers = (goal - 1) // self._block_size, self._numbers
            keys = self._lineage(ask, tokens, full).keys()[:full]
            names = [numbers.setdefault(key, len(numbers) + 1) for key in keys]
            self._state.names[first : first + full] = names
        self._places += places
        self._state.sequences[s] = (first, prompt, prompt, goal, 0, 0, 0, -1, 0, 0.0, 0.0)
        self._added[0] = s + 1
        self._told[s] = Told(ask, self.number, finish_reason="length", tokens=tokens.output)

    def _make_room(self, sequences: int, places: int) -> None:
        state, keys = self._state, len(self._numbers) + 1 + places - self._places
        if sequences > len(state.sequences):
            state = state._replace(sequences=_longer(state.sequences, sequences))
        if places > len(state.names):
            names, copies = _longer(state.names, places), _longer(state.copies, places)
            state = state._replace(names=names, copies=copies)
        if keys > len(state.keys):
            state = state._replace(keys=_longer(state.keys, keys))
        self._state = state

    def step(self, next_arrival: float | None = None, others: float = math.inf) -> list[Told]:
        """As `Simulation.step`."""
        until = math.inf if next_arrival is None else next_arrival
        if not kernel.run(self._state, min(until, others)):
            assert next_arrival is not None, "whoever waits alone finds room"
            self._now[0] = max(self._now[0], next_arrival)
            return []
        return [self._tell(s) for s in self._state.ended[: self._ended[0]].tolist()]

    def _tell(self, s: int) -> Told:
        told = self._told.pop(s)
        *_, cached, told.preemptions, told.first_token, told.finished = self._state.sequences[
            s
        ].item()
        told.cached_tokens = cached
        if cached:
            told.sources = {"device": cached}
        return told

    def check(self) -> None:
        """AssertionError unless every block is free, cached, or held as often as keys say."""
        state, counts = self._state, self._state.counts[0]
        refs = np.zeros(len(state.keys), np.int64)
        private = 0
        for s in state.running[: counts["running"]].tolist():
            it = state.sequences[s]
            places = slice(it["first"], it["first"] + it["published"])
            named = state.names[places][state.copies[places] == 0]
            refs[named] += 1
            private += it["blocks"] - len(named)
        assert (refs == state.keys["refs"]).all(), "references are the number of holders"
        idle, at = [], int(state.keys["after"][0])
        while at:
            idle.append(at)
            at = int(state.keys["after"][at])
        there = np.flatnonzero(state.keys["there"])
        assert sorted(idle) == there[refs[there] == 0].tolist(), "nobody's are in the ring"
        assert len(idle) == counts["idle"]
        held = int((refs > 0).sum()) + private
        assert held + counts["free"] + counts["idle"] == self._num_blocks
        assert len(self._told) == len(self._here())
        order = [*state.running[: counts["running"]], *state.back[: counts["back"]][::-1]]
        assert order == sorted(order), "nobody starts before one that came sooner"


def _longer(full: np.ndarray, least: int) -> np.ndarray:
    made = np.zeros(max(least, 2 * len(full)), full.dtype)
    made[: len(full)] = full
    return made


def _weights(latency: Latency) -> np.ndarray:
    """The model as `kernel.seconds` wants it."""
    made = np.zeros(1, kernel.LATENCY)
    made["flops"] = made["bandwidth"] = 1
    given: dict[str, float] = {}
    match latency:
        case Constant():
            given = {"step": latency.step}
        case Linear():
            given = {name: getattr(latency, name) for name in ("step", "prefill", "sequence", "kv")}
        case Roofline():
            same = "step weights always experts chosen kv_bytes pair_flops".split()
            given = {name: getattr(latency, name) for name in same}
            given["flops"] = latency.device.flops * latency.compute
            given["bandwidth"] = latency.device.bandwidth * latency.memory
    for name, value in given.items():
        made[name] = value
    return made
