from __future__ import annotations

import logging

import pytest

from vllm.core.request import EngineStats
from vllm.observe.recorder import ServerRecorder
from vllm.observe.stats import HitRate, StatsLog


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="vllm.observe.stats")
    return caplog


WORK = EngineStats(
    running=2,
    waiting=1,
    kv_usage=0.125,
    prefix_requests=1,
    prefix_queries=200,
    prefix_hits=50,
    computed_prompt_tokens=150,
    generated_tokens=300,
)


def test_the_line_has_vllms_form(time: Time, lines: pytest.LogCaptureFixture) -> None:
    log = StatsLog(clock=time, interval=10.0)
    time.now += 5
    log.record(WORK)
    assert lines.messages == []
    time.now += 5
    log.tick()
    assert lines.messages == [
        "Engine 000: Avg prompt throughput: 15.0 tokens/s, "
        "Avg generation throughput: 30.0 tokens/s, Running: 2 reqs, Waiting: 1 reqs, "
        "CPU KV cache usage: 12.5%, Prefix cache hit rate: 25.0%"
    ]


def test_preemptions_are_told_when_there_are_any(time: Time) -> None:
    log = StatsLog(clock=time, interval=10.0, device="GPU")
    log.record(EngineStats(preemptions=3))
    assert log.line(10.0).endswith("Preemptions: 3")
    assert "GPU KV cache usage" in log.line(10.0)


def test_an_idle_engine_is_quiet(time: Time, lines: pytest.LogCaptureFixture) -> None:
    log = StatsLog(clock=time, interval=10.0)
    log.record(WORK)
    for _ in range(4):
        time.now += 10
        log.record(EngineStats())
    levels = [record.levelno for record in lines.records]
    assert levels == [logging.INFO, logging.INFO, logging.DEBUG, logging.DEBUG]
    assert "throughput: 0.0 tokens/s" in lines.messages[1]


def test_the_interval_comes_from_the_environment(
    time: Time, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "2")
    log = StatsLog(clock=time)
    time.now += 2
    log.record(WORK)
    assert len(lines.messages) == 1
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "0")
    log = StatsLog(clock=time)
    time.now += 1000
    log.record(WORK)
    assert len(lines.messages) == 1, "0 turns the line off"


def test_the_hit_rate_forgets() -> None:
    rate = HitRate(requests=10)
    assert rate.value == 0.0
    for _ in range(10):
        rate.add(1, 100, 0)
    assert rate.value == 0.0
    for _ in range(5):
        rate.add(1, 100, 100)
    assert rate.value == 0.5
    for _ in range(5):
        rate.add(1, 100, 100)
    assert rate.value == 1.0
    rate.add(0, 0, 0)
    assert rate.value == 1.0


def test_a_server_records_both(time: Time) -> None:
    log = StatsLog(clock=time, interval=10.0)
    recorder = ServerRecorder("demo", log)
    recorder.step(WORK)
    assert "Running: 2 reqs" in log.line(10.0)
    labels = {"model_name": "demo", "engine": "0"}
    assert recorder.registry.get_sample_value("vllm:num_requests_running", labels) == 2
