"""KV events over real sockets: what a reader follows is what the cache holds."""

from __future__ import annotations

import socket
import time
from collections import defaultdict

import msgspec
import pytest
import zmq

from vllm.config import EngineArgs
from vllm.config.engine import EventsConfig
from vllm.kv.events import END_OF_REPLAY, EventBatch, Events, Publisher
from vllm.kv.lineage import Key, chain, root

from .test_spill import Bench

A, B = Key(b"a" * 32), Key(b"b" * 32)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


class Reader:
    """Follows a publisher: the keys of each tier, as far as it has been told."""

    def __init__(self, config: EventsConfig) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(config.endpoint)
        self.socket.setsockopt(zmq.SUBSCRIBE, config.topic.encode())
        self.config = config
        self.held: dict[str, set[bytes]] = defaultdict(set)
        self.numbers: list[int] = []
        self.batches: list[EventBatch] = []
        time.sleep(0.2)  # a subscription takes a moment to arrive

    def read(self, batches: int) -> None:
        for _ in range(batches):
            assert self.socket.poll(3000), "nothing comes"
            topic, number, batch = self.socket.recv_multipart()
            assert topic == self.config.topic.encode()
            self.take(int.from_bytes(number, "big"), batch)

    def take(self, number: int, batch: bytes) -> None:
        self.numbers.append(number)
        decoded = msgspec.msgpack.decode(batch, type=EventBatch)
        self.batches.append(decoded)
        for event in decoded.events:
            kind = type(event).__name__
            if kind == "BlockStored":
                self.held[event.medium].update(event.block_hashes)
            elif kind == "BlockRemoved":
                self.held[event.medium].difference_update(event.block_hashes)
            else:
                self.held.clear()

    def replay(self, first: int) -> list[int]:
        socket = self.context.socket(zmq.DEALER)
        socket.connect(self.config.replay_endpoint)
        socket.send_multipart([b"", first.to_bytes(8, "big")])
        told = []
        while True:
            assert socket.poll(3000)
            _, number, batch = socket.recv_multipart()
            if number == END_OF_REPLAY:
                break
            told.append(int.from_bytes(number, "big"))
            msgspec.msgpack.decode(batch, type=EventBatch)
        socket.close(0)
        return told

    def close(self) -> None:
        self.context.destroy(0)


@pytest.fixture
def config() -> EventsConfig:
    return EventsConfig(free_address(), free_address(), buffer_steps=3, topic="kv")


def test_a_reader_knows_what_every_tier_holds(config: EventsConfig) -> None:
    bench = Bench(blocks=6, host=4)
    kv = bench.kv
    events = Events(4, Publisher(config))
    kv.tell(events)
    reader = Reader(config)
    try:
        for seq in range(1, 8):
            kv.admit(seq, [seq] * 12)
            kv.publish(seq, [seq] * 12, 12)
            kv.release(seq)
            kv.write_back()
            bench.settle()
            events.flush()
        sent = events._publisher._number
        reader.read(sent)
        assert reader.numbers == list(range(sent))
        assert reader.held["device"] == set(dict(kv.index.items()))
        shelf = kv.tiers.levels[0].shelf
        assert reader.held["host"] == {k for k in reader.held["host"] if k in shelf}
        assert len(reader.held["host"]) == len(shelf) > 0
        first = reader.batches[0].events[0]
        key = chain(root(bytes(32)), [1] * 4)
        assert (first.block_hashes, first.token_ids, first.parent_block_hash) == (
            [key], [1] * 4, None,
        )  # fmt: skip
        assert reader.batches[0].events[1].parent_block_hash == key
        assert kv.reset()
        events.flush()
        reader.read(1)
        assert not any(reader.held.values())
    finally:
        reader.close()
        events.close()


def test_what_was_there_before_is_told_first(config: EventsConfig) -> None:
    bench = Bench(host=4)
    shelf = bench.kv.tiers.levels[0].shelf
    assert shelf.adopt([A, B]) == []
    events = Events(4, Publisher(config))
    reader = Reader(config)
    try:
        bench.kv.tell(events)
        events.flush()
        reader.read(1)
        assert reader.held["host"] == {A, B}
    finally:
        reader.close()
        events.close()


def test_old_batches_are_told_again(config: EventsConfig) -> None:
    events = Events(4, Publisher(config))
    reader = Reader(config)
    try:
        for _ in range(5):
            events.stored(A, "device")
            events.flush()
        reader.read(5)
        assert reader.replay(0) == [2, 3, 4], "as many as are kept"
        assert reader.replay(4) == [4]
        assert reader.replay(9) == []
        socket = reader.context.socket(zmq.DEALER)
        socket.connect(config.replay_endpoint)
        socket.send(b"nonsense")  # does nobody any harm
        assert reader.replay(3) == [3, 4]
    finally:
        reader.close()
        events.close()


def test_an_empty_step_is_no_batch(config: EventsConfig) -> None:
    publisher = Publisher(config)
    events = Events(4, publisher)
    events.flush()
    events.removed([], "device")
    events.flush()
    assert publisher._number == 0
    events.close()


def test_an_address_in_use_is_an_error(config: EventsConfig) -> None:
    publisher = Publisher(config)
    with pytest.raises(zmq.ZMQError):
        Publisher(config)
    publisher.close()


def test_the_flag() -> None:
    def events(**given: object) -> EventsConfig | None:
        return EngineArgs(kv_events_config=given).create_engine_config().cache.events

    assert events() is None
    assert events(endpoint="tcp://127.0.0.1:1") is None, "they must be enabled"
    assert events(enable_kv_cache_events=True, publisher="null") is None
    assert events(enable_kv_cache_events=True, topic="x") == EventsConfig(topic="x")
    for bad, named in (
        ({"endpont": "x"}, "endpont"),
        ({"publisher": "kafka"}, "publisher"),
        ({"hwm": 0}, "hwm"),
        ({"hwm": True}, "hwm"),
        ({"topic": 3}, "topic"),
    ):
        with pytest.raises(ValueError, match=named):
            events(enable_kv_cache_events=True, **bad)
    with pytest.raises(ValueError, match="enable_kv_cache_events"):
        events(enable_kv_cache_events="yes")
