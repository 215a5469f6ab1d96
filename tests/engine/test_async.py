"""The asynchronous engine, its core in another process: streams, ends, and all kinds of death."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from vllm.config import EngineArgs
from vllm.core.errors import EngineDeadError, QueueFullError, VLLMValidationError
from vllm.core.request import EngineStats
from vllm.engine.process import CoreProcess
from vllm.entrypoints.async_llm import AsyncLLMEngine
from vllm.entrypoints.engine_process import start_engine
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.sampling_params import RequestOutputKind, SamplingParams

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARGS = {
    "dtype": "float32",
    "cpu_threads": 1,
    "block_size": 16,
    "max_model_len": 2048,
    "num_gpu_blocks_override": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 256,
}
LONG = 1900  # tokens: more than any test waits for


class Recorder:
    """Keeps the core's statistics, and ignores the rest."""

    def __init__(self) -> None:
        self.steps: list[EngineStats] = []

    def step(self, stats: EngineStats) -> None:
        self.steps.append(stats)

    def first_token(self, seconds: float) -> None: ...

    def inter_token(self, seconds: float, count: int = 1) -> None: ...

    def finished(self, end: object) -> None: ...

    def rejected(self, reason: str) -> None: ...


def make(recorder: Recorder | None = None, **options) -> AsyncLLMEngine:
    return start_engine(EngineArgs(**(ARGS | options)), recorder, cls=AsyncLLMEngine)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorder():
    return Recorder()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(recorder):
    made = make(recorder)
    await made.is_ready()
    yield made
    assert not made.errored
    made.shutdown()


def prompt(engine: AsyncLLMEngine, length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(engine.config.model.vocab_size) for _ in range(length)]


def greedy(**more) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | more)


async def collect(stream) -> list:
    return [output async for output in stream]


async def whole(engine: AsyncLLMEngine, tokens: list[int], params: SamplingParams, name: str):
    return (await collect(engine.generate(tokens, params, name)))[-1].outputs[0]


async def nothing_runs(engine: AsyncLLMEngine, recorder: Recorder) -> None:
    """The core has heard all that was sent, holds nothing, and is in order."""
    assert await engine.call("check") is True
    for _ in range(100):
        last = recorder.steps[-1]
        if last.running == last.waiting == 0 and last.kv_usage == 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"the core still holds something: {last}")


# ---- streams ----------------------------------------------------------------------------------


async def test_deltas_make_up_the_whole(engine):
    tokens = prompt(engine, 20)
    params = greedy(temperature=1.0, seed=4, n=2, logprobs=1, max_tokens=25)
    by_kind = {}
    for kind in RequestOutputKind:
        mine = params.clone()
        mine.output_kind = kind
        by_kind[kind] = await collect(engine.generate(tokens, mine, f"kind-{kind}"))
    (final,) = by_kind[RequestOutputKind.FINAL_ONLY]
    last = by_kind[RequestOutputKind.CUMULATIVE][-1]
    deltas = [c for o in by_kind[RequestOutputKind.DELTA] for c in o.outputs]
    assert [o.finished for o in by_kind[RequestOutputKind.DELTA]][-2:] == [False, True]
    for index in range(2):
        mine = [d for d in deltas if d.index == index]
        expected = final.outputs[index]
        assert last.outputs[index].text == expected.text
        assert last.outputs[index].token_ids == expected.token_ids
        assert "".join(d.text for d in mine) == expected.text
        assert [t for d in mine for t in d.token_ids] == expected.token_ids
        assert len([p for d in mine for p in d.logprobs]) == len(expected.logprobs)
        assert [d.finish_reason for d in mine if d.finish_reason] == [expected.finish_reason]
    assert len(deltas) > 10, "it was a stream"


async def test_many_at_once_get_what_each_gets_in_process(engine, recorder):
    tasks = [
        whole(engine, prompt(engine, 3 + 5 * i, i), greedy(max_tokens=40 + i), f"many-{i}")
        for i in range(20)
    ]
    got = await asyncio.gather(*tasks)
    alone = LLMEngine.from_engine_args(EngineArgs(**ARGS, enable_prefix_caching=False))
    for i, made in enumerate(got):
        alone.add_request("r", prompt(engine, 3 + 5 * i, i), greedy(max_tokens=40 + i))
        outputs = []
        while alone.has_unfinished_requests():
            outputs += alone.step()
        assert made.token_ids == outputs[-1].outputs[0].token_ids
    assert 1 < max(s.running for s in recorder.steps) <= ARGS["max_num_seqs"]
    await nothing_runs(engine, recorder)


# ---- ends -------------------------------------------------------------------------------------


async def leave_by_closing(engine, name):
    stream = engine.generate(prompt(engine, 40), greedy(max_tokens=LONG), name)
    await anext(stream)
    await stream.aclose()


async def leave_by_cancelling(engine, name):
    started = asyncio.Event()

    async def consume():
        async for _ in engine.generate(prompt(engine, 40), greedy(max_tokens=LONG), name):
            started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_before_the_first_token(engine, name):
    stream = engine.generate(prompt(engine, 40), greedy(max_tokens=LONG), name)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize(
    "leave", [leave_by_closing, leave_by_cancelling, leave_before_the_first_token]
)
async def test_leaving_frees_blocks_within_two_steps(engine, recorder, leave):
    other = engine.generate(prompt(engine, 4), greedy(max_tokens=LONG), "other")
    await anext(other)
    before = recorder.steps[-1].kv_usage
    await leave(engine, "left")
    assert await engine.call("check") is True  # it is answered after the abort was heard
    seen = len(recorder.steps)
    while len(recorder.steps) < seen + 2:
        await anext(other)
    last = recorder.steps[seen + 1]
    assert (last.running, last.waiting) == (1, 0)
    assert last.kv_usage < before + 8 / ARGS["num_gpu_blocks_override"]
    await other.aclose()
    await nothing_runs(engine, recorder)


async def test_abort_from_outside_gives_a_last_output(engine, recorder):
    stream = engine.generate(prompt(engine, 30), greedy(max_tokens=LONG), "outside")
    first = await anext(stream)
    await engine.abort("outside")
    await engine.abort("never heard of")
    rest = await collect(stream)
    assert rest[-1].finished
    assert rest[-1].outputs[0].finish_reason == "abort"
    assert rest[-1].outputs[0].token_ids[:1] == first.outputs[0].token_ids[:1]
    assert len(rest[-1].outputs[0].token_ids) < LONG
    await engine.abort("outside")
    await nothing_runs(engine, recorder)


async def test_a_name_may_be_used_again_at_once(engine, recorder):
    """What is still on its way of the one who left is not taken for its successor's."""
    fresh = await whole(engine, prompt(engine, 9, 1), greedy(max_tokens=5), "fresh")
    for _ in range(15):
        stream = engine.generate(prompt(engine, 9, 2), greedy(max_tokens=LONG), "again")
        await anext(stream)
        await stream.aclose()
        again = await whole(engine, prompt(engine, 9, 1), greedy(max_tokens=5), "again")
        assert again.token_ids == fresh.token_ids
    await nothing_runs(engine, recorder)


async def test_a_stop_string_ends_the_sequence_in_the_core(engine, recorder):
    free = await whole(engine, prompt(engine, 12, 3), greedy(max_tokens=60), "free")
    assert len(free.text) > 8
    stop = free.text[len(free.text) // 2 :][:4]
    made = await whole(
        engine, prompt(engine, 12, 3), greedy(max_tokens=LONG, stop=[stop]), "stopped"
    )
    assert made.text == free.text[: free.text.index(stop)]
    assert (made.finish_reason, made.stop_reason) == ("stop", stop)
    await nothing_runs(engine, recorder)


async def test_bad_requests_are_refused_one_by_one(engine):
    cases = [
        ([], {}, "prompt"),
        ([10**9], {}, "prompt"),
        (prompt(engine, ARGS["max_model_len"]), {}, "prompt"),
        ([1], {"logprobs": 21}, "logprobs"),
        ([1], {"stop_token_ids": [10**6]}, "stop_token_ids"),
    ]
    for tokens, more, parameter in cases:
        with pytest.raises(VLLMValidationError) as caught:
            await collect(engine.generate(tokens, greedy(**more), "bad"))
        assert caught.value.parameter == parameter
    stream = engine.generate([1, 2], greedy(max_tokens=LONG), "twice")
    await anext(stream)
    with pytest.raises(VLLMValidationError, match="twice"):
        await collect(engine.generate([1, 2], greedy(), "twice"))
    await stream.aclose()
    await engine.check_health()


async def test_calls(engine, recorder):
    await whole(engine, prompt(engine, 50, 5), greedy(max_tokens=1), "fill")
    await nothing_runs(engine, recorder)
    assert await engine.reset_prefix_cache() is True
    (output,) = await collect(engine.generate(prompt(engine, 50, 5), greedy(max_tokens=1), "after"))
    assert output.num_cached_tokens == 0
    for method in ("shutdown", "step", "__init__", "no such thing"):
        with pytest.raises(RuntimeError, match="there is no method"):
            await engine.call(method)
    with pytest.raises(RuntimeError, match="TypeError"):
        await engine.call("check", "an argument too many")
    assert await engine.call("check") is True


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
async def test_sleep_by_what_becomes_of_requests(engine, recorder, mode):
    tokens, params = prompt(engine, 40, 9), greedy(max_tokens=150)
    expected = await whole(engine, tokens, params, f"alone-{mode}")
    under_way = asyncio.create_task(whole(engine, tokens, params, f"under-way-{mode}"))
    await asyncio.sleep(0.05)
    await engine.sleep(1, mode)
    assert await engine.is_sleeping() is True
    later = asyncio.create_task(whole(engine, tokens, params, f"later-{mode}"))
    await asyncio.sleep(0.1)
    assert under_way.done() is (mode != "keep")
    assert not later.done()
    assert await engine.wake_up(["kv_cache"]) is False
    assert await engine.wake_up() is True
    got = await under_way
    if mode == "abort":
        assert got.finish_reason == "abort"
    else:
        assert got.token_ids == expected.token_ids
    assert (await later).token_ids == expected.token_ids
    await nothing_runs(engine, recorder)


async def test_calls_that_the_core_refuses(engine):
    for call in (
        engine.sleep(7),
        engine.sleep(1, "now"),
        engine.wake_up(["everything"]),
        engine.start_profile(),
        engine.collective_rpc("execute"),
        engine.collective_rpc(print),
    ):
        with pytest.raises(VLLMValidationError):
            await call
    assert await engine.is_sleeping() is False
    assert await engine.collective_rpc("check_health") == [True]


async def test_outputs_of_one_request_are_one_in_the_queue():
    engine = make(max_num_queued_reqs=2, max_num_seqs=1)
    many = greedy(n=8, temperature=1.0, max_tokens=20)
    stream = engine.generate(prompt(engine, 5), many, "many")
    await anext(stream)  # one runs, and seven wait behind it
    others = [whole(engine, prompt(engine, 5), greedy(max_tokens=1), str(i)) for i in range(2)]
    await asyncio.gather(*others)
    assert [output async for output in stream][-1].finished
    engine.shutdown()


async def test_the_socket_folder_is_private(engine):
    folder = engine._process.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.name for p in folder.iterdir()} == {"to_core.sock", "from_core.sock"}


# ---- deaths: each needs an engine of its own --------------------------------------------------


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


async def test_queue_limit_and_death_by_kill():
    engine = make(max_num_queued_reqs=2, max_num_seqs=1)
    folder, pid = engine._process.folder, engine._process.pid
    try:
        streams = [
            engine.generate(prompt(engine, 9, i), greedy(max_tokens=LONG), f"r{i}")
            for i in range(8)
        ]
        firsts = [asyncio.ensure_future(collect(s)) for s in streams]
        refused = 0
        for _ in range(1000):
            refused = sum(f.done() and isinstance(f.exception(), QueueFullError) for f in firsts)
            if refused >= 5:
                break
            await asyncio.sleep(0.02)
        assert refused >= 5
        assert not engine.errored
        await engine.check_health()
        pending = [f for f in firsts if not f.done()]
        assert 1 <= len(pending) <= 3
        os.kill(pid, signal.SIGKILL)
        for future in pending:
            with pytest.raises(EngineDeadError, match="-9"):
                await asyncio.wait_for(future, 10)
        assert engine.errored
        with pytest.raises(EngineDeadError):
            await engine.check_health()
        with pytest.raises(EngineDeadError):
            await collect(engine.generate([1, 2], greedy(), "late"))
        with pytest.raises(EngineDeadError):
            await engine.call("check")
    finally:
        engine.shutdown()
    assert not folder.exists()


async def test_shutdown_ends_everything_and_leaves_nothing():
    before = psutil.Process().num_fds()
    engine = make()
    folder = engine._process.folder
    pid = engine._process.pid
    waiting = asyncio.ensure_future(
        collect(engine.generate(prompt(engine, 9), greedy(max_tokens=LONG), "r"))
    )
    await engine.is_ready()
    await asyncio.sleep(0.2)
    engine.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        await asyncio.wait_for(waiting, 5)
    assert gone(pid)
    assert not folder.exists()
    engine.shutdown()  # again is fine
    for _ in range(50):
        await asyncio.sleep(0.02)
        if psutil.Process().num_fds() <= before:
            break
    assert psutil.Process().num_fds() <= before, "files are left open"


async def test_a_malformed_message_ends_the_core_with_its_reason():
    engine = make()
    try:
        await engine.is_ready()
        await engine._outbox.send(b"\x81\xa4type\xa6delete")
        for _ in range(500):
            if engine.errored:
                break
            await asyncio.sleep(0.02)
        with pytest.raises(EngineDeadError, match=r"(?i)invalid"):
            await engine.check_health()
        assert gone(engine._process.pid)
    finally:
        engine.shutdown()


async def test_a_model_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        make(model=str(tmp_path / "nowhere"))
    demo = EngineArgs().create_engine_config().model.folder
    for path in demo.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    engine = make(model=str(tmp_path))
    try:
        with pytest.raises(EngineDeadError, match="safetensors"):
            await asyncio.wait_for(engine.is_ready(), 60)
        with pytest.raises(EngineDeadError, match="safetensors"):
            await collect(engine.generate([1], greedy(), "r"))
    finally:
        engine.shutdown()


async def test_a_tokenizer_that_cannot_be_loaded_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "sockets"))
    (tmp_path / "sockets").mkdir()
    demo = EngineArgs().create_engine_config().model.folder
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((demo / name).read_bytes())
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer"):
        make(model=str(model))
    assert not list((tmp_path / "sockets").glob("vllm-*"))


LAST_WORDS = """
import os, sys
from vllm.engine.process import CoreServer

server = CoreServer(sys.argv[1])
sys.stdin.buffer.raw.readline()
server.die(ValueError("the true reason"))
os._exit(1)
"""


async def test_last_words_are_heard_by_a_front_end_that_was_busy():
    config = EngineArgs(skip_tokenizer_init=True).create_engine_config()
    engine = AsyncLLMEngine(config, CoreProcess([sys.executable, "-c", LAST_WORDS], "{}"))
    try:
        ready = asyncio.ensure_future(engine.is_ready())
        await asyncio.sleep(0.01)
        engine._process.wait()  # blocks the loop: it learns of the words and of the end at once
        time.sleep(0.1)
        with pytest.raises(EngineDeadError, match="the true reason"):
            await asyncio.wait_for(ready, 10)
    finally:
        engine.shutdown()


PARENT = """
import asyncio, json, sys, time
from vllm.config import EngineArgs
from vllm.entrypoints.async_llm import AsyncLLMEngine

async def main():
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(**json.loads(sys.argv[1])))
    if sys.argv[2] == "ready":
        await engine.is_ready()
    print(engine._process.pid, engine._process.folder, flush=True)
    time.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["ready", "loading"])
async def test_the_core_ends_when_its_parent_is_killed(when):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(ARGS), when],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    line = await asyncio.to_thread(parent.stdout.readline)
    pid, folder = int(line.split()[0]), Path(line.split()[1].decode())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)
    assert not folder.exists()
