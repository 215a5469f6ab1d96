"""The scheduler's promises, one by one. `test_machine` looks at all of them at once."""

from __future__ import annotations

import pytest

from .drive import Drive, prompt


def running(drive: Drive) -> list[str]:
    return [s.request.request_id for s in drive.scheduler.running]


def waiting(drive: Drive) -> list[str]:
    return [s.request.request_id for s in drive.scheduler.waiting]


def until_preempted(drive: Drive) -> None:
    while drive.totals.preemptions == 0:
        assert drive.scheduler.has_work, "nobody was preempted"
        drive.step()


# ---- order ------------------------------------------------------------------------------------


def test_first_come_first_served():
    drive = Drive(seqs=1)
    for arrival in (3.0, 1.0, 2.0):
        drive.add(prompt(5), arrival=arrival, max_tokens=3)
    drive.run()
    assert drive.finished == [("r1", 0), ("r2", 0), ("r0", 0)]
    drive.verify()


def test_equal_arrivals_keep_the_order_of_their_coming():
    drive = Drive(seqs=1)
    for _ in range(4):
        drive.add(prompt(5), arrival=1.0, max_tokens=2)
    drive.run()
    assert [r for r, _ in drive.finished] == ["r0", "r1", "r2", "r3"]


def test_priority_beats_arrival():
    drive = Drive(seqs=1, policy="priority")
    for priority, arrival in ((1, 1.0), (0, 3.0), (0, 2.0), (-5, 9.0)):
        drive.add(prompt(5), priority=priority, arrival=arrival, max_tokens=2)
    drive.run()
    assert [r for r, _ in drive.finished] == ["r3", "r2", "r1", "r0"]
    drive.verify()


def test_the_last_in_order_is_preempted():
    drive = Drive(blocks=8, size=2, policy="priority")
    drive.add(prompt(3), "low", priority=5, arrival=0.0, max_tokens=5)
    drive.add(prompt(3, 10), "high", priority=1, arrival=1.0, max_tokens=5)
    drive.add(prompt(3, 20), "mid", priority=3, arrival=2.0, max_tokens=5)
    until_preempted(drive)
    assert running(drive) == ["high", "mid"]
    assert waiting(drive) == ["low"]
    drive.run()
    drive.verify()


def test_a_preempted_sequence_keeps_its_place():
    drive = Drive(blocks=5, size=2)
    drive.add(prompt(3), "first", max_tokens=5)
    drive.add(prompt(3, 10), "second", max_tokens=5)
    drive.add(prompt(3, 20), "third", max_tokens=5)
    until_preempted(drive)
    assert running(drive) == ["first"]
    assert waiting(drive) == ["second", "third"]
    drive.run()
    assert [r for r, _ in drive.finished] == ["first", "second", "third"]
    drive.verify()


# ---- budget -----------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_beside_decodes():
    drive = Drive(blocks=64, budget=8)
    drive.add(prompt(4), "stream", max_tokens=12)
    drive.step()
    drive.add(prompt(40, 5), "long", max_tokens=2)
    for _ in range(5):
        plan = drive.step()
        assert plan.counts.tolist() == [1, 7]
    assert len(drive.told["stream", 0].tokens) == 6, "a token a step, whatever else there is"
    drive.run()
    drive.verify()


def test_long_prefill_token_threshold():
    drive = Drive(blocks=64, budget=32, threshold=6)
    drive.add(prompt(15), "a", max_tokens=2)
    drive.add(prompt(20, 3), "b", max_tokens=2)
    assert drive.step().counts.tolist() == [6, 6]
    assert drive.step().counts.tolist() == [6, 6]
    assert drive.step().counts.tolist() == [3, 6]
    assert drive.step().counts.tolist() == [1, 2]
    drive.run()
    drive.verify()


def test_without_chunked_prefill_prompts_are_computed_whole():
    drive = Drive(blocks=16, size=4, budget=24, chunked=False, max_model_len=24)
    for i, length in enumerate((20, 20, 3)):
        drive.add(prompt(length, i), max_tokens=3)
    firsts = []
    while drive.scheduler.has_work:
        plan = drive.step()
        counts = dict(zip(plan.seqs, plan.counts.tolist(), strict=True))
        firsts += [(new.seq, counts[new.seq]) for new in plan.new]
    assert firsts == [(1, 20), (2, 20), (3, 3)]
    drive.verify()


def test_cached_tokens_are_not_charged():
    drive = Drive(blocks=64, size=4, budget=16)
    drive.add(prompt(40), max_tokens=1)
    drive.run()
    drive.add(prompt(43), max_tokens=1)
    drive.add(prompt(43), max_tokens=1)
    plan = drive.step()
    assert plan.starts.tolist() == [40, 40]
    assert plan.counts.tolist() == [3, 3]
    assert drive.told["r1", 0].cached == 40
    drive.verify()


@pytest.mark.parametrize("length", [7, 8, 9])
def test_a_wholly_cached_prompt_computes_at_least_its_last_token(length):
    drive = Drive(size=4)
    drive.add(prompt(length), max_tokens=2)
    drive.run()
    drive.add(prompt(length), max_tokens=2)
    plan = drive.step()
    assert plan.starts.tolist() == [(length - 1) // 4 * 4]
    assert plan.sample.tolist() == [True]
    drive.run()
    drive.verify()


def test_max_num_seqs():
    drive = Drive(blocks=64, seqs=3)
    for i in range(7):
        drive.add(prompt(3, i), max_tokens=1 + i)
    most = 0
    while drive.scheduler.has_work:
        most = max(most, len(drive.step().seqs))
    assert most == 3
    drive.verify()


# ---- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15])
def test_max_model_len_ends_a_sequence_exactly_there(length):
    drive = Drive(blocks=4, size=4, max_model_len=16)
    drive.add(prompt(length), max_tokens=100)
    drive.run()
    assert len(drive.told["r0", 0].tokens) == 16 - length
    assert drive.told["r0", 0].end == ("length", None)
    drive.verify()


def test_stop_tokens_wait_for_min_tokens():
    every = list(range(50))
    drive = Drive()
    drive.add(prompt(4), "stop", stop_token_ids=every, min_tokens=3, max_tokens=9)
    drive.add(prompt(4), "eos", eos=tuple(every), min_tokens=2, max_tokens=9)
    drive.add(prompt(4), "ignored", eos=tuple(every), ignore_eos=True, max_tokens=4)
    drive.add(prompt(4), "both", eos=tuple(every), stop_token_ids=every, max_tokens=4)
    drive.run()
    drive.verify()
    told = {request: t for (request, _), t in drive.told.items()}
    assert {r: len(t.tokens) for r, t in told.items()} == {
        "stop": 3,
        "eos": 2,
        "ignored": 4,
        "both": 1,
    }
    assert told["stop"].end == ("stop", told["stop"].tokens[-1])
    assert told["eos"].end == ("stop", None)
    assert told["ignored"].end == ("length", None)
    assert told["both"].end == ("stop", None)


def test_abort_frees_blocks_at_once_in_every_state():
    drive = Drive(blocks=8, size=4, seqs=2, budget=8)
    drive.add(prompt(9), "prefilling", max_tokens=4)
    drive.add(prompt(9), "queued", max_tokens=4)
    drive.step()
    drive.abort("prefilling", "queued", "never heard of")
    assert drive.kv.usage == 0
    assert not drive.scheduler.has_work
    drive.add(prompt(3), "decoding", max_tokens=4, n=3)
    drive.step()
    drive.step()
    drive.abort("decoding")
    assert drive.kv.usage == 0
    drive.abort("decoding")
    drive.verify()


def test_an_output_that_met_a_stop_string_ends_alone():
    drive = Drive()
    drive.add(prompt(6), "r", n=3, max_tokens=8)
    for _ in range(3):
        drive.step()
    drive.end(("r", 1), ("r", 9), ("unknown", 0))
    drive.run()
    assert [len(drive.told["r", i].tokens) for i in range(3)] == [8, 2, 8]
    drive.verify()


# ---- limits of the queue ----------------------------------------------------------------------


def test_max_num_queued_reqs():
    drive = Drive(queued_reqs=2)
    for _ in range(4):
        drive.add(prompt(3), max_tokens=2)
    drive.run()
    assert drive.rejected == {
        "r2": ("rejected", "max_num_queued_reqs"),
        "r3": ("rejected", "max_num_queued_reqs"),
    }
    drive.add(prompt(3), max_tokens=2)  # there is room again
    drive.run()
    drive.verify()


def test_max_num_queued_tokens():
    drive = Drive(queued_tokens=10)
    drive.add(prompt(20), max_tokens=2)  # more than the limit, but the queue is empty
    drive.add(prompt(3), max_tokens=2)
    drive.run()
    assert drive.rejected == {"r1": ("rejected", "max_num_queued_tokens")}
    drive.add(prompt(5), max_tokens=2)
    drive.add(prompt(5), max_tokens=2)
    drive.add(prompt(1), max_tokens=2)
    drive.run()
    assert set(drive.rejected) == {"r1", "r4"}
    drive.verify()


def test_a_refusal_is_told_though_nothing_else_runs():
    drive = Drive(queued_reqs=1, seqs=1)
    drive.add(prompt(3), "a")
    drive.add(prompt(3), "b")
    drive.abort("a")
    assert drive.scheduler.has_work
    drive.step()
    assert set(drive.rejected) == {"b"}
    assert not drive.scheduler.has_work


def test_an_id_that_is_taken_is_an_error():
    drive = Drive()
    drive.add(prompt(3), "a", max_tokens=3)
    drive.scheduler.add(drive.requests["a"], 0.0)
    plan = drive.scheduler.schedule(1.0)
    outputs = drive.scheduler.update(plan, drive.fake.execute(plan))
    assert outputs[0].finish_reason == "invalid"
    assert "the id a" in outputs[0].stop_reason
    assert outputs[1].token_ids
    drive.scheduler.check()


# ---- statistics -------------------------------------------------------------------------------


def test_computed_and_cached_tokens_make_up_the_prompts():
    drive = Drive(blocks=64, size=4, budget=16)
    for length in (40, 43, 40, 8):
        drive.add(prompt(length), n=2, max_tokens=3)
        drive.run()
    assert drive.totals.prefix_queries == 131
    assert drive.totals.prefix_hits == 0 + 40 + 36 + 4
    assert drive.totals.computed_prompt_tokens == 131 - 80
    assert drive.totals.generated_tokens == 4 * 2 * 3
    drive.verify()


def test_a_prompt_that_is_preempted_half_way_is_counted_once():
    drive = Drive(blocks=7, size=2, budget=2)
    drive.add(prompt(3), "short", max_tokens=9)
    drive.step()
    drive.step()
    drive.add(prompt(8, 10), "long", max_tokens=2)
    until_preempted(drive)
    assert waiting(drive) == ["long"]
    assert not drive.told["long", 0].tokens, "it was preempted within its prompt"
    drive.run()
    assert drive.totals.prefix_queries == 11
    assert drive.totals.prefix_hits == 0
    assert drive.totals.computed_prompt_tokens == 11
    drive.verify()


def test_requests_that_do_not_read_the_cache_are_not_counted_as_misses():
    drive = Drive()
    for _ in range(2):
        drive.add(prompt(9), max_tokens=1, skip_reading_prefix_cache=True)
        drive.run()
    assert drive.totals.prefix_queries == 0
    assert drive.totals.computed_prompt_tokens == 18
    assert drive.told["r1", 0].cached == 0
    drive.verify()


# ---- many at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_pool_of_one_sequence_serves_many(size):
    """Every step preempts or waits; all come to their end, in bounded time."""
    drive = Drive(blocks=-(-12 // size), size=size, seqs=6, budget=6, max_model_len=12)
    for i in range(6):
        drive.add(prompt(1 + i, 10 * i), n=1 + i % 3, max_tokens=11)
    steps = drive.run()
    assert steps < 400
    drive.verify()


@pytest.mark.parametrize(("length", "admitted"), [(4, True), (5, False)])
def test_admission_leaves_a_block_to_each_who_runs(length, admitted):
    """Or the next step's first act would be to put somebody out again."""
    drive = Drive(blocks=4, size=4)
    drive.add(prompt(5), "runs", max_tokens=9)
    drive.step()
    drive.add(prompt(length, 20), "waits", max_tokens=2)
    drive.step()
    assert running(drive) == (["runs", "waits"] if admitted else ["runs"])
    drive.run()
    drive.verify()


def test_preemption_does_not_thrash():
    drive = Drive(blocks=12, size=2, seqs=8, budget=64)
    for i in range(6):
        drive.add(prompt(5, 10 * i), max_tokens=12)
    drive.run()
    drive.verify()
    assert drive.totals.preemptions <= 6
