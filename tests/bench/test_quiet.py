"""A stopwatch that waits for others, by clocks that are given."""

from __future__ import annotations

import pytest

from benchmarks import quiet
from benchmarks.quiet import QuietWatch, others


def test_what_others_take_is_waited_for_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = [0.0], [0.0]
    busy_until = 7.0

    def sleep(seconds: float) -> None:
        now[0] += seconds
        taken[0] += seconds if now[0] <= busy_until else 0.0

    monkeypatch.setattr(quiet.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(quiet.time, "sleep", sleep)
    monkeypatch.setattr(quiet, "others", lambda: taken[0])
    watch = QuietWatch()
    for _ in range(30):
        now[0] += 0.1
        watch.tick()
    assert (watch.seconds, watch.waited) == (pytest.approx(3.0, abs=0.5), 0)
    now[0], taken[0] = now[0] + 0.6, taken[0] + 0.3  # somebody has come, and stays for a while
    watch.tick()
    assert watch.waited == pytest.approx(5, abs=1.01) and now[0] > busy_until
    now[0] += 0.2
    watch.stop()
    assert watch.seconds == pytest.approx(3.8)


@pytest.mark.skipif(not quiet.STAT.exists(), reason="no /proc/stat")
def test_own_work_is_not_others() -> None:
    before = others()
    sum(i * i for i in range(2_000_000))
    assert others() >= before - 0.1
