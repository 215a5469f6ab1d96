"""The asynchronous engine: many requests at once, the core in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import zmq
import zmq.asyncio

from vllm.config import VllmConfig
from vllm.core.clock import monotonic
from vllm.core.errors import EngineDeadError, QueueFullError, VLLMValidationError
from vllm.core.request import (
    AbortRequests,
    Call,
    Died,
    EndOutputs,
    Ready,
    Reply,
    StepOutputs,
    ToCore,
)
from vllm.core.structured import StructuredOutputsParams
from vllm.engine.client import Prompt
from vllm.engine.input import InputProcessor
from vllm.engine.output import OutputProcessor, Recorder, RequestRejectedError
from vllm.engine.process import CoreProcess, decode_from_core, encode
from vllm.engine.sleep import LEVELS
from vllm.engine.tokenizer import make_tokenizer
from vllm.grammar import COMPILE_SECONDS, compile_grammar
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

CALL_TIMEOUT = 30.0  # seconds
LOAD_TIMEOUT = 1800.0  # seconds; of calls that read a model's weights or write a profile
DRAIN_LOOK = 0.02  # seconds between looks at what still runs
SLEEP_MODES = ("abort", "wait", "keep")
LAST_WORDS = 0.2  # seconds in which a core that has ended may still be heard to say why
Answer = RequestOutput | Exception


class AsyncLLM:
    """Implements `engine.client.EngineClient`. Belongs to the event loop that first uses it.

    Making one starts the core's process and returns at once; `is_ready` waits until it has loaded.
    The clocks of both processes are the machine's monotonic clock, so times may be compared.
    """

    def __init__(
        self,
        config: VllmConfig,
        process: CoreProcess,
        recorder: Recorder | None = None,
    ) -> None:
        self.config = config
        try:
            self.tokenizer = make_tokenizer(config)
        except BaseException:
            process.stop()
            raise
        self.max_model_len = config.model.max_model_len  # the core may cut it; see `is_ready`
        self.ready: Ready | None = None
        self._output = OutputProcessor(self.tokenizer, recorder)
        self._names: dict[str, str] = {}  # request id -> its name in the core; see `generate`
        self._queues: dict[str, asyncio.Queue[Answer]] = {}  # by that name
        self._calls: dict[int, asyncio.Future[object]] = {}
        self._numbers = itertools.count()
        self._dead: EngineDeadError | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: asyncio.Task[None] | None = None
        self._loaded = asyncio.Event()
        self._open = asyncio.Event()  # cleared while the engine is put to sleep
        self._open.set()
        self._process = process
        self._sending: asyncio.Future[Any] | None = None
        self._context = zmq.asyncio.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.bind(process.from_core)
        self._outbox = self._context.socket(zmq.PUSH)
        self._outbox.setsockopt(zmq.LINGER, 0)
        self._outbox.setsockopt(zmq.SNDHWM, 0)
        self._outbox.bind(process.to_core)
        process.start()

    # ---- what users call ----------------------------------------------------------------------

    @property
    def errored(self) -> bool:
        return self._dead is not None

    async def is_ready(self) -> None:
        """Wait until the core has loaded; EngineDeadError, with its reason, if it could not."""
        self._attach()
        await self._loaded.wait()
        self._raise_if_dead()

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """The request's outputs as they come. Leaving early aborts the request.

        Raises VLLMValidationError, QueueFullError or EngineDeadError; see `EngineClient`.
        """
        await self.is_ready()
        await self._open.wait()
        if request_id in self._names:
            raise VLLMValidationError(
                f"a request with the id {request_id} is running already", parameter="request_id"
            )
        if sampling_params.structured_outputs is not None:
            await _compiled_aside(sampling_params.structured_outputs)
        # Never used again, so that what is still on its way of a request that was left can not be
        # taken for the output of the next one with the same id.
        name = str(next(self._numbers))
        request, text = InputProcessor(self.config, self.tokenizer, self.max_model_len).make(
            name,
            prompt,
            sampling_params,
            priority=priority,
            cache_salt=cache_salt,
            arrival=time.time(),
        )
        request.public_id = request_id
        queue: asyncio.Queue[Answer] = asyncio.Queue()
        self._names[request_id], self._queues[name] = name, queue
        self._output.add(request, text, monotonic())
        finished = False
        try:
            await self._send(request)
            while not finished:
                answer = await queue.get()
                if isinstance(answer, Exception):
                    raise answer
                finished = answer.finished
                answer.request_id = request_id
                yield answer
        finally:
            del self._names[request_id], self._queues[name]
            if not finished:
                self._output.drop(name)
                self._send_now(AbortRequests([name]))

    async def abort(self, request_id: str) -> None:
        """End a request from outside: its iterator gets a last output with reason "abort"."""
        name = self._names.get(request_id)
        if name is None:
            return
        last = self._output.abort(name, monotonic())
        if last is not None:
            self._queues[name].put_nowait(last)
        await self._send(AbortRequests([name]))

    async def check_health(self) -> None:
        self._raise_if_dead()

    async def dump_prefix_metrics(self) -> dict[str, int]:
        """Write the files of `prefix_metrics`. Raises RuntimeError when there are none."""
        counts: dict[str, int] = await self.call("dump_prefix_metrics")  # type: ignore[assignment]
        return counts

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forget the device's cached KVs, and with `reset_connector` those of slower tiers.

        False while requests hold some; with `reset_running_requests` they are computed again.
        """
        return bool(await self.call("reset_prefix_cache", reset_running_requests, reset_connector))

    async def cache_session(
        self, session: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        return int(str(await self.call("cache_session", session, verb, ttl, salt)))

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Plan nothing and give memory back (see `engine.sleep`) until `wake_up`.

        mode: what becomes of requests that are under way: abort, wait (for their ends) or keep
        (they go on afterwards). Later ones wait. Raises VLLMValidationError.
        """
        if mode not in SLEEP_MODES:
            raise VLLMValidationError(
                f"mode must be one of {', '.join(SLEEP_MODES)}", parameter="mode", value=mode
            )
        if level not in LEVELS:
            raise VLLMValidationError("level must be 0, 1 or 2", parameter="level", value=level)
        await self.is_ready()
        self._open.clear()
        try:
            if mode == "abort":
                for request_id in list(self._names):
                    await self.abort(request_id)
            while mode == "wait" and self._names:
                await asyncio.sleep(DRAIN_LOOK)
            await self.call("sleep", level)
        finally:
            self._open.set()

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        """Wake all, or only these of weights, kv_cache, scheduling. Whether nothing sleeps now.

        Raises VLLMValidationError for another tag.
        """
        return bool(await self.call("wake_up", tags, timeout=LOAD_TIMEOUT))

    async def is_sleeping(self) -> bool:
        return bool(await self.call("is_sleeping"))

    async def start_profile(self) -> str:
        """The folder that the profile will be in. Raises VLLMValidationError."""
        return str(await self.call("start_profile"))

    async def stop_profile(self) -> str:
        """The file that was written. Raises VLLMValidationError."""
        return str(await self.call("stop_profile", timeout=LOAD_TIMEOUT))

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a worker's method by its name on every rank. Raises VLLMValidationError."""
        if not isinstance(method, str):
            raise VLLMValidationError(
                "a function cannot be sent to the engine's process; use LLM", parameter="method"
            )
        seconds = CALL_TIMEOUT if timeout is None else timeout
        result = await self.call(
            "collective_rpc", method, list(args), kwargs or {}, timeout=seconds
        )
        assert isinstance(result, list)
        return result

    async def call(self, method: str, *args: object, timeout: float = CALL_TIMEOUT) -> object:
        """Call one of the core's methods (`process.CALLABLE`).

        Raises VLLMValidationError for bad arguments, RuntimeError if it fails, TimeoutError.
        """
        await self.is_ready()
        number = next(self._numbers)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            await self._send(Call(number, method, list(args)))
            return await asyncio.wait_for(future, timeout)
        finally:
            self._calls.pop(number, None)

    def shutdown(self) -> None:
        """End the core's process; requests that are under way end with EngineDeadError."""
        self._closing = True
        self._die("the engine was shut down")
        if self._reader is not None:
            self._reader.cancel()
        self._process.stop()
        self._inbox.close(0)
        self._outbox.close(0)
        self._context.term()

    # ---- the line to the core -----------------------------------------------------------------

    def _attach(self) -> None:
        """Start reading, on the loop that is running now."""
        if self._reader is None:
            self._loop = asyncio.get_running_loop()
            self._reader = self._loop.create_task(self._read())
            threading.Thread(target=self._watch, daemon=True, name="core-watch").start()

    def _watch(self) -> None:
        code = self._process.wait()
        loop = self._loop
        if not self._closing and loop is not None:
            message = f"the engine process ended with exit code {code}"
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(loop.call_later, LAST_WORDS, self._die, message)

    async def _read(self) -> None:
        try:
            while True:
                self._take(decode_from_core(await self._inbox.recv()))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.exception("The engine's front end failed")
            self._die(f"{type(error).__name__}: {error}")

    def _take(self, message: StepOutputs | Reply | Ready | Died) -> None:
        match message:
            case StepOutputs():
                outputs, ended, rejected = self._output.process(message)
                if ended:
                    self._send_now(EndOutputs(ended))
                for output in outputs:
                    self._queues[output.request_id].put_nowait(output)
                for refusal in rejected:
                    self._queues[refusal.request_id].put_nowait(_as_user_error(refusal))
            case Reply():
                future = self._calls.get(message.number)
                if future is not None and not future.done():
                    if message.error is None:
                        future.set_result(message.result)
                    elif message.invalid:
                        future.set_exception(VLLMValidationError(message.error))
                    else:
                        future.set_exception(RuntimeError(message.error))
            case Ready():
                self.ready = message
                self.max_model_len = message.max_model_len
                self._loaded.set()
            case Died():
                self._die(message.error)

    async def _send(self, message: ToCore) -> None:
        self._raise_if_dead()
        await self._outbox.send(encode(message))

    def _send_now(self, message: ToCore) -> None:
        """From code that must not wait. The socket has no high-water mark, so this never blocks."""
        if self._dead is None:
            self._sending = asyncio.ensure_future(self._outbox.send(encode(message)))

    def _die(self, reason: str) -> None:
        """Everything that waits ends with an error, now and from now on."""
        if self._dead is not None:
            return
        if not self._closing:
            logger.error("The engine died: %s", reason)
        self._dead = EngineDeadError(reason)
        self._loaded.set()
        self._open.set()
        for queue in self._queues.values():
            queue.put_nowait(self._dead)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(self._dead)

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise self._dead


def _as_user_error(refusal: RequestRejectedError) -> Exception:
    if refusal.reason == "rejected":
        return QueueFullError(f"too many requests wait already ({refusal})")
    return VLLMValidationError(str(refusal), parameter="request_id")


async def _compiled_aside(wish: StructuredOutputsParams) -> None:
    """Compile in a thread, so that the loop goes on; `compile_grammar` keeps what it made."""
    work = asyncio.to_thread(compile_grammar, wish)
    try:
        await asyncio.wait_for(work, COMPILE_SECONDS)
    except asyncio.TimeoutError as error:
        raise VLLMValidationError(
            f"structured_outputs.{wish.kind} takes more than {COMPILE_SECONDS:g} s to compile",
            parameter=f"structured_outputs.{wish.kind}",
        ) from error
