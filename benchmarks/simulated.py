"""Programs against an engine in simulated time: the same code, an event loop on the virtual clock.

The loop never waits. Where it would, the simulated engine makes its next step instead, or, when it
has none to make, the clock jumps to the next timer. So a program's sleeps and its requests live in
one time, and a run takes as long as the scheduler and the cache manager need.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from examples.agents.client import Answer, Message
from vllm.config import EngineArgs, VllmConfig, hub
from vllm.core.request import EngineRequest, SequenceOutput
from vllm.core.retention import hints
from vllm.engine.core import EngineCore
from vllm.engine.tokenizer import Tokenizer
from vllm.sampling_params import SamplingParams
from vllm.simulator.clock import VirtualClock
from vllm.simulator.executor import SimulatedExecutor
from vllm.simulator.latency import DEVICES, Weights

T = TypeVar("T")
IDLE = 1.0  # seconds that an idle engine is looked at again after, while its tiers move


class Stuck(RuntimeError):
    """The program waits for something that will never come."""


class _Selector(selectors.DefaultSelector):
    """Lets time pass instead of waiting: `advance(seconds)` may stop earlier; None: no timer."""

    def __init__(self, advance: Callable[[float | None], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        self._advance(timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock, advance: Callable[[float | None], None]) -> None:
        super().__init__(_Selector(advance))
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now


class SimulatedModel:
    """Implements `examples.agents.client.Model` over a simulated engine.

    Prompts are tokenised with the demo model's tokenizer, whatever model is simulated; a message
    that the engine made goes back to it as the tokens that it made. Every answer is as long as
    `max_tokens` says, and a function of its prompt.
    """

    def __init__(self, config: VllmConfig) -> None:
        assert config.simulator is not None and config.simulator.clock == "virtual"
        self.core = EngineCore(config, SimulatedExecutor)
        clock = self.core.executor.clock
        assert isinstance(clock, VirtualClock)
        self.clock = clock
        self._tokenizer = Tokenizer(hub.resolve(None, weights=False, tokenizer_only=True))
        self._words = [
            i for i in range(self._tokenizer.vocab_size) if i not in self._tokenizer.special_ids
        ]
        self._ids: dict[str, list[int]] = {}  # tokens of contents, also of what was answered
        self._running: dict[str, tuple[Answer, list[int], asyncio.Future[None]]] = {}
        self._count = 0
        self.counts: dict[str, float] = {}

    # ---- what a program calls -----------------------------------------------------------------

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        **extra: Any,
    ) -> Answer:
        ids: list[int] = []
        for message in messages:
            ids += self._encode(f"<{message['role']}>") + self._encode(message["content"])
        return await self._ask(ids + self._encode("<assistant>"), max_tokens, extra)

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float = 0.0, **extra: Any
    ) -> Answer:
        return await self._ask(list(self._encode(prompt)), max_tokens, extra)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def now(self) -> float:
        return self.clock.now

    # ---- the engine ---------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        ids = self._ids.get(text)
        if ids is None:
            ids = self._ids[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    async def _ask(self, prompt: list[int], max_tokens: int, extra: dict[str, Any]) -> Answer:
        answer = Answer(start=self.now(), prompt_tokens=len(prompt))
        most = self.core.capacity.max_model_len
        if len(prompt) + max_tokens > most:
            answer.error = f"{len(prompt)} + {max_tokens} tokens are more than {most}"
            return answer
        self._count += 1
        name = str(self._count)
        digest = hashlib.sha256(json.dumps(prompt).encode()).digest()
        request = EngineRequest(
            request_id=name,
            prompt_token_ids=prompt,
            params=SamplingParams(
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                seed=int.from_bytes(digest[:6], "little"),
            ),
            max_tokens=max_tokens,
            arrival=self.now(),
            cache_salt=extra.get("cache_salt"),
            priority=extra.get("priority", 0),
            hints=hints(extra),
        )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tokens: list[int] = []
        self._running[name] = answer, tokens, done
        self.core.add(request)
        await done
        # What is random among a large model's tokens is random among the tokenizer's, too.
        words = [self._words[token % len(self._words)] for token in tokens]
        answer.text = self._tokenizer.decode(words)
        self._ids[answer.text] = tokens
        return answer

    def advance(self, timeout: float | None) -> None:
        """One step of the engine, or as much time as the program's next timer leaves."""
        before = self.clock.now
        if self.core.has_work:
            outputs = self.core.step()
            self._count_stats(outputs.stats)
            for output in outputs.outputs:
                self._take(output)
            if self.clock.now > before or outputs.outputs:
                return
            if timeout is None:
                raise Stuck("no request can run, and nothing else will happen")
            self.clock.sleep(timeout)
            return
        if timeout is None:
            raise Stuck("the program waits for something that is neither the model nor time")
        until = before + timeout
        while self.clock.now < until and self.core.tidy():
            self.core.scheduler.kv.wait(min(IDLE, until - self.clock.now))
        self.clock.sleep_until(until)

    def _take(self, output: SequenceOutput) -> None:
        answer, tokens, done = self._running[output.request_id]
        tokens += output.token_ids
        answer.output_tokens = len(tokens)
        answer.times += [self.clock.now] * len(output.token_ids)
        answer.cached_tokens = max(answer.cached_tokens, output.num_cached_tokens)
        if output.finish_reason is not None:
            if output.finish_reason != "length":
                answer.error = f"{output.finish_reason}: {output.stop_reason}"
            del self._running[output.request_id]
            done.set_result(None)

    def _count_stats(self, stats: Any) -> None:
        if stats is None:
            return
        add = {
            "queries": stats.prefix_queries,
            "device": stats.prefix_hits,
            "preemptions": stats.preemptions,
            **stats.tier_hits,
        }
        for name, value in add.items():
            self.counts[name] = self.counts.get(name, 0) + value
        self.counts["peak_usage"] = max(self.counts.get("peak_usage", 0.0), stats.kv_usage)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The program to its end, in virtual time. Raises Stuck."""
        loop = _Loop(self.clock, self.advance)
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()


def config(device: str, model: str, **engine: Any) -> VllmConfig:
    """A simulated engine of this geometry on this device, whose memory it may fill.

    Raises ValueError for names that are not known, and for a model that does not fit.
    """
    known = [name for name, peaks in DEVICES.items() if peaks.memory]
    if device not in known:
        raise ValueError(f"--simulate: device must be one of {', '.join(known)}, not {device!r}")
    given: dict[str, Any] = {
        "simulator": "random",
        "simulator_model": model,
        "simulator_clock": "virtual",
        "simulator_latency": f"roofline:device={device}",
        **engine,
    }
    if "num_gpu_blocks_override" not in given and "kv_cache_memory_bytes" not in given:
        probe = EngineArgs(**given, num_gpu_blocks_override=1 << 20).create_engine_config()
        weights = Weights.of(probe.model.hf, probe.model)
        share = EngineArgs.gpu_memory_utilization
        left = int(DEVICES[device].memory * share - 2 * (weights.dense + weights.experts))
        if left <= 0:
            raise ValueError(f"--simulate: {model} does not fit into {device}'s memory")
        given["kv_cache_memory_bytes"] = left
    return EngineArgs(**given).create_engine_config(serving=True)
