"""Programs in simulated time: sleeps and requests share one clock, and nothing depends on ours."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.programs import PROGRAMS
from benchmarks.recorded import Recorder
from benchmarks.simulated import SimulatedModel, Stuck, config


def model(**engine: object) -> SimulatedModel:
    return SimulatedModel(config("h100", "llama-3-8b", num_gpu_blocks_override=600, **engine))


def test_sleeping_takes_simulated_time_only() -> None:
    simulation = model()

    async def work() -> list[float]:
        ends = []

        async def one(seconds: float) -> None:
            await simulation.sleep(seconds)
            ends.append(simulation.now())

        await asyncio.gather(one(100.0), one(3.0), one(20.0))
        return ends

    start = time.perf_counter()
    assert simulation.run(work()) == pytest.approx([3.0, 20.0, 100.0])
    assert time.perf_counter() - start < 10


def test_requests_run_beside_each_other_and_beside_sleeps() -> None:
    simulation = model(simulator_latency="constant:step=0.5")

    async def work() -> tuple[float, float, float]:
        async def ask(at: float) -> float:
            await simulation.sleep(at)
            answer = await simulation.complete(f"word {at}", max_tokens=4)
            assert answer.output_tokens == 4 and answer.error is None
            assert answer.ttft >= 0.5 and answer.gaps == pytest.approx([0.5] * 3)
            return simulation.now()

        first, second, third = await asyncio.gather(ask(0.0), ask(0.1), ask(10.0))
        return first, second, third

    assert simulation.run(work()) == pytest.approx((2.0, 2.5, 12.0))


def test_an_answer_goes_back_as_its_tokens() -> None:
    simulation = model()

    async def work() -> None:
        history = [{"role": "user", "content": "one " * 50}]
        said = await simulation.chat(history, max_tokens=64)
        history += [{"role": "assistant", "content": said.text}, {"role": "user", "content": "go"}]
        again = await simulation.chat(history, max_tokens=1)
        assert again.prompt_tokens > said.prompt_tokens + 64
        # All of the first prompt and all computed tokens of its answer, in whole blocks.
        assert again.cached_tokens >= (said.prompt_tokens + 63) // 16 * 16 - 16

    simulation.run(work())


def test_a_prompt_that_is_too_long_is_an_error_of_its_own() -> None:
    simulation = model(max_model_len=64)
    answer = simulation.run(simulation.complete("word " * 100, max_tokens=4))
    assert answer.error is not None and "more than 64" in answer.error


def test_waiting_for_nothing_is_told() -> None:
    simulation = model()

    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck, match="neither the model nor time"):
        simulation.run(work())


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> tuple[float, dict[str, str]]:
        simulation = SimulatedModel(
            config("h100", "llama-3-8b", num_gpu_blocks_override=160, max_model_len=2048)
        )
        recorder = Recorder(simulation)
        simulation.run(PROGRAMS["guessing_game"](recorder, seed, "small"))
        simulation.core.check()
        assert simulation.core.scheduler.kv.usage == 0
        return simulation.now(), recorder.texts

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize(
    ("device", "name", "says"),
    [
        ("z80", "llama-3-8b", "z80"),
        ("h100", "gpt-9", "gpt-9"),
        ("l4", "llama-3-70b", "does not fit"),
    ],
)
def test_unknown_and_impossible_machines_are_refused(device: str, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(device, name)
