"""What the cache holds and loses, told to whoever wants to know: vLLM's KV events.

Batches are msgpack arrays [time, events, 0], each event an array that starts with its name:

    ["BlockStored", [hash], parent hash or nil, token ids, block size, nil, medium]
    ["BlockRemoved", [hash], medium]
    ["AllBlocksCleared"]

Hashes are the keys' bytes, media the tiers' names. Tokens are told where the block was computed;
one that only moved has none.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence

import msgspec
import zmq

from vllm.config.engine import EventsConfig
from vllm.kv.lineage import Key

logger = logging.getLogger(__name__)

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
POLL_MS = 100


class BlockStored(msgspec.Struct, array_like=True, tag=True):
    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None


class BlockRemoved(msgspec.Struct, array_like=True, tag=True):
    block_hashes: list[bytes]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, array_like=True, tag=True):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Event]
    data_parallel_rank: int = 0


class Events:
    """Collects a step's events; `flush` hands them to the publisher, in order, as one batch."""

    def __init__(self, block_size: int, publisher: Publisher) -> None:
        self._block_size = block_size
        self._publisher = publisher
        self._events: list[Event] = []

    def stored(
        self, key: Key, tier: str, parent: Key | None = None, tokens: Sequence[int] = ()
    ) -> None:
        self._events.append(BlockStored([key], parent, list(tokens), self._block_size, None, tier))

    def found(self, keys: Sequence[Key], tier: str) -> None:
        """Blocks that were in a tier before this process; what is in them nobody knows by now."""
        if keys:
            self._events.append(BlockStored(list(keys), None, [], self._block_size, None, tier))

    def removed(self, keys: Sequence[Key], tier: str) -> None:
        if keys:
            self._events.append(BlockRemoved(list(keys), tier))

    def cleared(self) -> None:
        self._events.append(AllBlocksCleared())

    def flush(self) -> None:
        if self._events:
            self._publisher.publish(self._events)
            self._events = []

    def close(self) -> None:
        self.flush()
        self._publisher.close()


class Publisher:
    """A PUB socket, [topic, sequence number, batch], and a ROUTER that tells old ones again.

    Who has missed some sends the first number that it wants to the replay socket, and gets
    [number, batch] for each that is still kept, then [-1, ""]. Numbers are 8 bytes, big-endian.
    A queue and a thread stand between the engine and the sockets; when the queue is full, batches
    are dropped, which readers see as a gap in the numbers.
    """

    def __init__(self, config: EventsConfig) -> None:
        """Raises OSError (zmq.ZMQError) when an address cannot be bound."""
        self._topic = config.topic.encode()
        self._queue: queue.Queue[tuple[int, bytes] | None] = queue.Queue(config.max_queue_size)
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._number = 0
        self.dropped = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set_hwm(config.hwm)
        self._replay = None
        try:
            self._socket.bind(config.endpoint)
            if config.replay_endpoint is not None:
                self._replay = self._context.socket(zmq.ROUTER)
                self._replay.bind(config.replay_endpoint)
        except zmq.ZMQError:
            self._context.destroy(0)
            raise
        self._thread = threading.Thread(target=self._work, daemon=True, name="kv-events")
        self._thread.start()

    def publish(self, events: list[Event]) -> None:
        batch = msgspec.msgpack.encode(EventBatch(time.time(), events))
        number, self._number = self._number, self._number + 1
        try:
            self._queue.put_nowait((number, batch))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("KV events are dropped: nobody takes them fast enough")

    def _work(self) -> None:
        while True:
            if self._replay is not None and self._replay.poll(0):
                self._answer()
            try:
                item = self._queue.get(timeout=POLL_MS / 1000)
            except queue.Empty:
                continue
            if item is None:
                return
            self._kept.append(item)
            self._socket.send_multipart([self._topic, item[0].to_bytes(8, "big"), item[1]])

    def _answer(self) -> None:
        assert self._replay is not None
        frames = self._replay.recv_multipart()
        if len(frames) != 3 or len(frames[2]) != 8:
            logger.warning("A request for old KV events that is none: %d frames", len(frames))
            return
        who, first = frames[0], int.from_bytes(frames[2], "big")
        for number, batch in list(self._kept):
            if number >= first:
                self._replay.send_multipart([who, b"", number.to_bytes(8, "big"), batch])
        self._replay.send_multipart([who, b"", END_OF_REPLAY, b""])

    def close(self) -> None:
        """Send what is queued, and end."""
        self._queue.put(None)
        self._thread.join(2.0)
        self._socket.close(200)
        if self._replay is not None:
            self._replay.close(0)
        self._context.term()
