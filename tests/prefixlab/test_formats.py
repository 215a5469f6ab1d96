"""What is read from each format, what is written, and how bad lines are told."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prefixlab.made import chains, seeds
from vllm.kv.lineage import chain, root
from vllm.prefixlab.formats import Options, Source, guess, read, write
from vllm.prefixlab.formats.arrivals import fit_sharing
from vllm.prefixlab.formats.oracle import RECORD
from vllm.prefixlab.trace import Trace, TraceBuilder, joined


def lines(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def ids(trace: Trace) -> list[list[int]]:
    return [trace.ids[a:b].tolist() for a, b in zip(trace.starts, trace.starts[1:], strict=False)]


def columns(trace: Trace) -> tuple[Any, ...]:
    names = "starts ids arrival input_len output_len session turn".split()
    kinds = [trace.workloads[w] for w in trace.workload]
    return (trace.block_size, kinds, *(getattr(trace, name).tolist() for name in names))


MOONCAKE = [
    {"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 1500, "input_length": 1024, "output_length": 7, "hash_ids": [0, 9]},
]


def test_mooncake(tmp_path: Path) -> None:
    trace = read(lines(tmp_path / "t.jsonl", *MOONCAKE))
    trace.check()
    assert trace.block_size == 512
    assert ids(trace) == [[0, 1, 2], [0, 3]]
    assert trace.arrival.tolist() == [0, 1.5]
    assert trace.tokens.tolist() == [512, 512, 6, 512, 512]
    assert trace.output_len.tolist() == [5, 7]


def test_gzip_is_unpacked_and_a_torn_one_is_told(tmp_path: Path) -> None:
    plain = lines(tmp_path / "t.jsonl", *MOONCAKE)
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert columns(read(packed)) == columns(read(plain))
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not whole"):
        read(packed)


def test_requests_out_of_order_are_sorted_by_arrival(tmp_path: Path) -> None:
    trace = read(lines(tmp_path / "t.jsonl", *reversed(MOONCAKE)))
    trace.check()
    assert ids(trace) == [[0, 1, 2], [0, 3]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "JSON|truncated"),
        ({"timestamp": 0, "input_length": 1030}, "hash_ids"),
        ({"timestamp": "x", "input_length": 1, "hash_ids": [1]}, "timestamp"),
        ({"timestamp": -1, "input_length": 1, "hash_ids": [1]}, "timestamp: must be"),
        ({"timestamp": 0, "input_length": 0, "hash_ids": []}, "input_length: must be"),
        ({"timestamp": 0, "input_length": 5000, "hash_ids": [1]}, "hash_ids: 1 ids do not fit"),
        ({"timestamp": 0, "input_length": 1024, "hash_ids": [1, 1]}, "stands twice"),
        ({"timestamp": 0, "input_length": 512, "hash_ids": [-4]}, "must not be negative"),
        ({"timestamp": 0, "input_length": 512, "hash_ids": [2**80]}, "hash_ids|range|64-bit"),
        ({"timestamp": 0, "input_length": 512, "output_length": -1, "hash_ids": [1]}, "output_len"),
    ],
)
def test_a_bad_line_is_told_and_the_others_are_read(tmp_path: Path, row: Any, says: str) -> None:
    trace = read(lines(tmp_path / "t.jsonl", MOONCAKE[0], "", row, MOONCAKE[1]), "mooncake")
    assert ids(trace) == [[0, 1, 2], [0, 3]]
    assert trace.bad_count == 1 and trace.bad[0].line == 3
    with pytest.raises(ValueError, match=says):
        raise ValueError(trace.bad[0].why)


def test_bad_lines_are_counted_beyond_those_that_are_told(tmp_path: Path) -> None:
    trace = read(lines(tmp_path / "t.jsonl", *MOONCAKE, *["no"] * 50))
    assert trace.bad_count == 50 and len(trace.bad) == 20


def test_a_file_without_requests_is_refused_with_its_first_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no request in it; line 2: "):
        read(lines(tmp_path / "t.jsonl", "", "{]"), "mooncake")
    with pytest.raises(ValueError, match="not a trace that is known"):
        read(lines(tmp_path / "t.jsonl", "hello"))
    with pytest.raises(ValueError, match="format: 'csv' is not one of"):
        read(lines(tmp_path / "t.jsonl", *MOONCAKE), "csv")


def test_bailian_follows_a_chats_turns_to_its_first(tmp_path: Path) -> None:
    base = {"input_length": 16, "output_length": 3, "hash_ids": [5]}
    trace = read(
        lines(
            tmp_path / "t.jsonl",
            base | {"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.5, "turn": 1, "type": "api"},
            base | {"chat_id": 8, "parent_chat_id": 7, "timestamp": 2.5, "turn": 2, "type": "api"},
            base | {"chat_id": 9, "parent_chat_id": 8, "timestamp": 3, "turn": 3, "type": "text"},
            base | {"chat_id": 10, "parent_chat_id": -1, "timestamp": 4, "turn": 1, "type": "api"},
        )
    )
    assert trace.block_size == 16
    assert trace.session.tolist() == [0, 0, 0, 1]
    assert trace.turn.tolist() == [0, 1, 2, 0]
    assert [trace.workloads[w] for w in trace.workload] == ["api", "api", "text", "api"]
    assert trace.arrival.tolist() == [0.5, 2.5, 3, 4]


SESSIONS = [
    {
        "id": "a",
        "block_size": 64,
        "hash_id_scope": "local",
        "requests": [
            {"t": 0.0, "in": 130, "out": 5, "hash_ids": [1, 2]},
            {"t": 9.0, "in": 192, "out": 5, "hash_ids": [1, 2, 3]},
        ],
    },
    {
        "id": "b",
        "block_size": 64,
        "hash_id_scope": "local",
        "requests": [{"t": 1.0, "in": 64, "out": 5, "hash_ids": [1]}, {"t": 2.0, "hash_ids": [1]}],
    },
]


@pytest.mark.parametrize("form", ["lines", "list"])
def test_sessions(tmp_path: Path, form: str) -> None:
    if form == "lines":
        path = lines(tmp_path / "t.jsonl", *SESSIONS)
    else:
        path = tmp_path / "t.json"
        path.write_text(json.dumps(SESSIONS, indent=1))
    trace = read(path)
    trace.check()
    assert ids(trace) == [[0, 1], [2], [0, 1, 3]]  # local ids of two sessions are apart
    assert trace.session.tolist() == [0, 1, 0] and trace.turn.tolist() == [0, 0, 1]
    assert trace.bad_count == 1 and "request 1: in: " in trace.bad[0].why


def test_one_session_as_one_document_with_global_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(SESSIONS[0] | {"hash_id_scope": "global"}, indent=1))
    assert ids(read(path)) == [[0, 1], [0, 1, 2]]


def test_text_is_tokenised_and_chained_by_the_engines_keys(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t.jsonl",
        {"prompt": "a" * 40},
        {"prompt": "a" * 32 + "b"},
        {"prompt": [97] * 16, "timestamp": 2, "workload": "qa", "session": "x"},
        {"body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}},
        {"prompt": ""},
        {"prompt": [True]},
        {"prompt": "x", "timestamp": "soon"},
        [1],
    )
    trace = read(path)
    assert ids(trace) == [[0, 1, 2], [0, 1, 3], [4], [0]]  # the third came later
    assert trace.input_len.tolist() == [40, 33, 9, 16]
    assert [bad.line for bad in trace.bad] == [5, 6, 7, 8]
    halved = read(path, options=Options(encode=lambda text: [len(text)]))
    assert halved.input_len.tolist() == [1, 1, 1, 16]
    from vllm.prefixlab.formats.text import keys

    assert keys([97] * 20, 16)[1] == chain(chain(root(b"lab"), [97] * 16), [97] * 4)


def test_a_conversation_is_a_request_a_turn(tmp_path: Path) -> None:
    said = [("human", "one " * 8), ("gpt", "two"), ("human", "three"), ("gpt", "four")]
    talk = {"id": "t", "conversations": [{"from": who, "value": what} for who, what in said]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps([talk, {"conversations": []}, talk], indent=1))
    trace = read(path)
    assert trace.requests == 4 and trace.bad_count == 1 and trace.bad[0].line == 2
    assert trace.turn.tolist() == [0, 1, 0, 1]
    assert trace.session.tolist() == [0, 0, 1, 1]
    first, second = ids(trace)[:2]
    assert second[: len(first) - 1] == first[:-1]  # what comes later continues it
    told = sum(len(f"{who}: {what}\n") for who, what in said[:3])
    assert trace.input_len.tolist()[:2] == [len("human: \n") + len(said[0][1]), told]
    assert ids(trace)[2:] == [first, second]


def test_kv_events_of_a_batch_are_a_request_a_chain(tmp_path: Path) -> None:
    def stored(hashes: list[str], parent: str | None, medium: str | None = "GPU") -> list[Any]:
        return ["BlockStored", hashes, parent, [1] * 16 * len(hashes), 16, None, medium]

    path = lines(
        tmp_path / "t.jsonl",
        [10.0, [stored(["a"], None), stored(["b", "c"], "a"), stored(["x"], None)]],
        [11.0, [stored(["a"], None, "CPU"), ["BlockRemoved", ["c"], "GPU"], ["AllBlocksCleared"]]],
        [12.5, [stored(["d"], "b"), stored(["e"], "b")]],
        [13.0, [["BlockStored", ["f", "g"], None, [], 16, None, "device"]]],  # were there before
        {"type": "BlockStored", "block_hashes": ["h"], "parent_block_hash": None, "ts": 14.0},
        [15.0, [stored(["i"], "i")]],
        [16.0, [["BlockStored", ["j"], None, [1], 32]]],
        [17.0, [["Exploded"]]],
    )
    trace = read(path)
    trace.check()
    # a b c = 0 1 2, x = 3, a b d, a b e, h
    assert ids(trace) == [[0, 1, 2], [3], [0, 1, 4], [0, 1, 5], [6]]
    assert trace.arrival.tolist() == [0, 0, 2.5, 2.5, 4]
    assert [bad.line for bad in trace.bad] == [6, 7, 8]


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,374,44
2023-11-16 18:17:04.4799600,396,109
2023-11-16 18:17:05,abc,109
2023-11-16 18:17:06.4799600,0,109
2023-11-16 18:18:00+00:00,879,55
"""


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    trace = read(path)
    trace.check()
    assert trace.input_len.tolist() == [374, 396, 879]
    assert trace.arrival.tolist() == pytest.approx([0, 0.5, 56.02004])
    assert [bad.line for bad in trace.bad] == [4, 5]
    assert columns(read(path)) == columns(trace), "the same seed draws the same"


def test_burstgpt_with_sharing_fitted_to_another_trace(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"{t},ChatGPT,{rng.integers(900, 2000)},50,1000,{('API log', 'Conversation log')[t % 2]}"
        for t in range(5, 605)
    ]
    path = tmp_path / "b.csv"
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path.write_text("\n".join([head, *rows]))

    def reused(trace: Trace) -> float:
        return 1 - trace.universe / trace.accesses

    builder = TraceBuilder(16)
    for i in range(100):
        builder.add([3 * i, 3 * i + 1, 3 * i + 2], 48)
    nothing = read(path, options=Options(fit=builder.build()))
    assert reused(nothing) == 0
    assert reused(read(path)) > 0.1
    assert set(nothing.workloads) == {"API log", "Conversation log"}
    assert nothing.arrival[0] == 0 and nothing.arrival[-1] == 599


def test_fitted_sharing_by_hand() -> None:
    builder = TraceBuilder(16)
    builder.add([1, 2, 3], 48)
    builder.add([1, 2, 3, 4], 64)  # continues the first
    builder.add([1, 5], 32)  # starts as it did
    builder.add([9], 16)  # shares nothing
    found = fit_sharing(builder.build())
    assert (found.continued, found.templated) == (0.25, 0.25)
    assert (found.template, found.templates) == (16, 1)


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("out")
    trace = chains(seed, 30)
    write(trace, folder / "lab.jsonl", "lab")
    again = read(folder / "lab.jsonl")
    again.check()
    assert columns(again) == columns(trace)
    write(trace, folder / "m.jsonl", "mooncake")
    moon = read(folder / "m.jsonl", options=Options(block_size=trace.block_size))
    assert ids(moon) == ids(trace)
    assert moon.input_len.tolist() == trace.input_len.tolist()
    assert np.abs(moon.arrival - trace.arrival).max() <= 0.0005
    write(trace, folder / "t.oracleGeneral", "oracle-general")
    flat = read(folder / "t.oracleGeneral")
    assert flat.ids.tolist() == trace.ids.tolist()


def test_oracle_general_byte_by_byte(tmp_path: Path) -> None:
    builder = TraceBuilder(4)
    builder.add([1, 2], 8, 0, 3.0)
    builder.add([1], 4, 0, 5.0)
    path = tmp_path / "t.oracleGeneral"
    write(builder.build(), path, "oracle-general")
    rows = np.fromfile(path, RECORD)
    assert path.stat().st_size == 3 * 24
    assert rows["time"].tolist() == [3, 3, 5]
    assert rows["id"].tolist() == [0, 1, 0]
    assert rows["next"].tolist() == [2, -1, -1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="inside a record"):
        read(path)


def test_libcachesim_reads_what_we_write(tmp_path: Path) -> None:
    import libcachesim as lcs

    path = tmp_path / "t.oracleGeneral"
    trace = chains(4, 60)
    write(trace, path, "oracle-general")
    opened = lcs.TraceReader(str(path), lcs.TraceType.ORACLE_GENERAL_TRACE)
    assert [request.obj_id for request in opened] == trace.ids.tolist()


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"vllm_lab_trace": 1, "block_size": 4}, "lab"),
        (MOONCAKE[0], "mooncake"),
        (MOONCAKE[0] | {"chat_id": 1}, "bailian"),
        (SESSIONS[0], "sessions"),
        ({"messages": []}, "text"),
        ({"input": "x", "output_length": 3}, "text"),
        ([1.0, [["BlockStored", [1], None, [], 16]]], "kv-events"),
        ({"ts": 1, "events": []}, "kv-events"),
        ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "burstgpt"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "azure"),
    ],
)
def test_formats_are_known_by_their_first_line(tmp_path: Path, row: Any, format: str) -> None:
    assert guess(Source(lines(tmp_path / "t", row))) == format


@given(data=st.binary(max_size=200), format=st.sampled_from(["mooncake", "text", "kv-events"]))
@settings(max_examples=60, deadline=None)
def test_rubbish_is_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, format: str
) -> None:
    path = tmp_path_factory.mktemp("rubbish") / "t"
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError)):
        read(path, format)


@pytest.mark.parametrize("format", ["lab", "mooncake", "sessions", "text", "kv-events", "azure"])
@pytest.mark.parametrize("data", [b"", b"[" * 200_000, b'{"a":' * 100_000])
def test_nothing_and_too_much_nesting_are_refused_in_words(
    tmp_path: Path, format: str, data: bytes
) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read(path, format)


def test_blocks_have_no_more_tokens_than_can_be_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="times"):
        chains(0, 3).coarser(1 << 20)
    path = tmp_path / "t.oracleGeneral"
    write(chains(0, 3), path, "oracle-general")
    with pytest.raises(ValueError, match="block_size"):
        read(path, options=Options(block_size=1 << 30))


def test_coarser_blocks_are_those_of_a_trace_that_was_cut_so(tmp_path: Path) -> None:
    prompts = [[1] * 70, [1] * 40 + [2] * 9, [1] * 70 + [3] * 30, [4] * 15]
    path = lines(tmp_path / "t.jsonl", *({"prompt": tokens} for tokens in prompts))
    fine = read(path, options=Options(block_size=8)).coarser(2)
    fine.check()
    assert columns(fine) == columns(read(path, options=Options(block_size=16)))


def test_joined_streams_are_one_by_time_with_ids_apart() -> None:
    parts = [chains(1, 20), chains(2, 20)]
    both = joined(parts)
    both.check()
    assert both.requests == 40
    assert both.universe == sum(part.universe for part in parts)
    with pytest.raises(ValueError, match="block_size"):
        joined([parts[0], parts[1].coarser(2)])
