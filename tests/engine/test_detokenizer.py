"""Text token by token: what decoding everything at once gives, and it stops where it shall."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.made_tokenizers import EOS, TEXTS, TURN, folder
from vllm.config.hub import demo_model
from vllm.engine.detokenizer import Detokenizer
from vllm.engine.tokenizer import Tokenizer

fast = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    base: Path = tmp_path_factory.mktemp("tokenizers")
    kinds = ("byte_level", "metaspace", "word_level")
    return {kind: Tokenizer(folder(base / kind, kind)) for kind in kinds}


def pieces(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip_special: bool = True, **given
) -> list[str]:
    """The deltas, one for each token that was taken and one for the end."""
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip_special, **given)
    told = []
    for token in ids:
        stop = detokenizer.add(token)
        if stop is not None:
            return [*told, detokenizer.take(finished=True)]
        told.append(detokenizer.take(finished=False))
        assert detokenizer.shown == "".join(told)
    detokenizer.finish()
    return [*told, detokenizer.take(finished=True)]


def at_once(tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip_special: bool) -> str:
    context = tokenizer.decode(prompt, skip_special_tokens=skip_special)
    whole = tokenizer.decode(prompt + ids, skip_special_tokens=skip_special)
    assert whole.startswith(context)
    return whole[len(context) :]


@pytest.mark.parametrize("kind", ["byte_level", "word_level"])
@pytest.mark.parametrize("skip_special", [True, False])
def test_random_tokens_give_the_text_of_decoding_all(
    made: dict[str, Tokenizer], kind: str, skip_special: bool
) -> None:
    tokenizer = made[kind]
    token = st.integers(0, tokenizer.vocab_size - 1)
    prompt = tokenizer.encode("the cat")

    @fast
    @given(st.lists(token, max_size=60))
    def check(ids: list[int]) -> None:
        told = pieces(tokenizer, prompt, ids, skip_special)
        assert "".join(told) == at_once(tokenizer, prompt, ids, skip_special)

    check()


@pytest.mark.parametrize("skip_special", [True, False])
def test_random_byte_tokens_give_the_text_of_decoding_all(
    made: dict[str, Tokenizer], skip_special: bool
) -> None:
    """Bytes and pieces of characters only: nearly everything is invalid somewhere."""
    tokenizer = made["byte_level"]
    prompt = tokenizer.encode("a")
    high = [
        i
        for i in range(tokenizer.vocab_size)
        if "\ufffd" in tokenizer.decode([i]) or i in tokenizer.special_ids
    ]

    @fast
    @given(st.lists(st.sampled_from(high), min_size=20, max_size=80))
    def check(ids: list[int]) -> None:
        told = pieces(tokenizer, prompt, ids, skip_special)
        assert "".join(told) == at_once(tokenizer, prompt, ids, skip_special)

    check()


@pytest.mark.parametrize("skip_special", [True, False])
def test_random_text_tokens_with_byte_fallback(
    made: dict[str, Tokenizer], skip_special: bool
) -> None:
    """Any tokens but bytes: invalid bytes make this decoder take back valid ones before them."""
    tokenizer = made["metaspace"]
    prompt = tokenizer.encode("Hello")
    usable = [i for i in range(tokenizer.vocab_size) if not tokenizer.token(i).startswith("<0x")]

    @fast
    @given(st.lists(st.sampled_from(usable), max_size=50))
    def check(ids: list[int]) -> None:
        told = pieces(tokenizer, prompt, ids, skip_special)
        assert "".join(told) == at_once(tokenizer, prompt, ids, skip_special)

    check()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_text_comes_back_in_whole_characters(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    prompt = tokenizer.encode("Hello")

    @fast
    @given(st.text(st.sampled_from(sorted(set("".join(TEXTS)) | set("🤖𝄞߷ﷺ")))))
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        told = pieces(tokenizer, prompt, ids)
        assert "".join(told) == at_once(tokenizer, prompt, ids, True)
        assert text in "".join(told)
        assert not any("\ufffd" in piece for piece in told)

    check()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_a_character_waits_for_its_last_byte(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    ids = tokenizer.encode("🤖", add_special_tokens=False)
    assert len(ids) >= 3
    told = pieces(
        tokenizer, tokenizer.encode("a"), [i for i in ids if tokenizer.decode([i]).strip()]
    )
    assert [t.strip() for t in told[:-2]] == [""] * (len(told) - 2)
    assert told[-2].strip() == "🤖"
    assert told[-1] == ""


def test_many_characters_that_no_token_ends(tmp_path: Path) -> None:
    """Tokens that end in the middle of a character each time must not spoil one in the long run."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models

    middle = {"ðŁ": 0, "ĺĢðŁ": 1, "ĺĢ": 2, "x": 3}
    rust = Rust(models.WordLevel(middle, unk_token="x"))
    rust.decoder = decoders.ByteLevel()
    rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    told = pieces(tokenizer, [3], [0, *[1] * 100, 2, 3])
    assert "".join(told) == "😀" * 101 + "x"
    assert not any("\ufffd" in piece for piece in told)
    assert max(map(len, told)) <= 20  # and not all of it at the end


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_bytes_that_are_no_character_come_at_the_end(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    ids = tokenizer.encode("ok 🤖", add_special_tokens=False)[:-1]
    told = pieces(tokenizer, tokenizer.encode("a"), ids)
    assert "\ufffd" not in "".join(told[:-1])
    assert "".join(told[:-1]).strip() == "ok"
    assert set(told[-1].lstrip()) == {"\ufffd"}


def test_a_character_that_the_prompt_began(made: dict[str, Tokenizer]) -> None:
    for kind in ("byte_level", "metaspace"):
        tokenizer = made[kind]
        ids = tokenizer.encode("a 🤖 b", add_special_tokens=False)
        cut = next(i for i in range(len(ids)) if "\ufffd" in tokenizer.decode(ids[: i + 1])) + 1
        told = pieces(tokenizer, ids[:cut], ids[cut:])
        assert "".join(told) == "🤖 b"


def test_a_prompt_that_ends_in_a_replacement_character(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["byte_level"]
    prompt = tokenizer.encode("odd \ufffd")
    assert (
        "".join(pieces(tokenizer, prompt, tokenizer.encode("x", add_special_tokens=False))) == "x"
    )


def test_the_first_token_is_spaced_as_in_running_text(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["metaspace"]
    world = tokenizer.encode("world", add_special_tokens=False)
    assert "".join(pieces(tokenizer, tokenizer.encode("Hello"), world)) == " world"
    # Special tokens are no text: behind them alone, a text begins.
    turn = tokenizer._rust.token_to_id(TURN)
    assert "".join(pieces(tokenizer, [turn], world)) == "world"
    for silent in (turn, tokenizer.vocab_size + 5):
        told = pieces(tokenizer, tokenizer.encode("Hello"), [*world, *[silent] * 40, *world])
        assert "".join(told) == " world world"


def test_special_tokens_are_skipped_or_shown(made: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in made.items():
        end = tokenizer._rust.token_to_id(EOS)
        cat = tokenizer.encode("the", add_special_tokens=False)
        ids = [*cat, end, *cat]
        prompt = tokenizer.encode("the")
        assert "</s>" not in "".join(pieces(tokenizer, prompt, ids)), kind
        assert "</s>" in "".join(pieces(tokenizer, prompt, ids, skip_special=False)), kind


def test_ids_that_the_tokenizer_lacks_have_no_text(made: dict[str, Tokenizer]) -> None:
    for tokenizer in made.values():
        cat = tokenizer.encode("the", add_special_tokens=False)
        told = pieces(tokenizer, tokenizer.encode("the"), [*cat, tokenizer.vocab_size + 5, *cat])
        assert "".join(told) == at_once(tokenizer, tokenizer.encode("the"), [*cat, *cat], True)


# ---- stop strings -----------------------------------------------------------------------------


def spelt(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token for each ASCII character."""
    return [tokenizer._rust.token_to_id({" ": "Ġ"}.get(c, c)) for c in text]


def run(tokenizer: Tokenizer, text: str, stop: list[str], **given) -> tuple[str, str | None, int]:
    """(text, stop that was met, tokens taken); no delta may ever have to be taken back."""
    detokenizer = Detokenizer(tokenizer, spelt(tokenizer, "p"), stop=stop, **given)
    shown = ""
    for count, token in enumerate(spelt(tokenizer, text), start=1):
        met = detokenizer.add(token)
        shown += detokenizer.take(finished=met is not None)
        if met is not None:
            assert shown == detokenizer.text
            return shown, met, count
    detokenizer.finish()
    shown += detokenizer.take(finished=True)
    assert shown == detokenizer.text
    return shown, None, len(text)


@pytest.mark.parametrize(
    ("text", "stop", "out", "met"),
    [
        ("hello END more", ["END"], "hello ", "END"),
        ("END", ["END"], "", "END"),
        ("EN END", ["END"], "EN ", "END"),
        ("ENEND", ["END"], "EN", "END"),
        ("aaab", ["aab"], "a", "aab"),
        ("abcabd", ["abd"], "abc", "abd"),
        ("one two", ["two", "one"], "", "one"),
        ("xabcy", ["abc", "b"], "xa", "b"),  # the first to be complete
        ("no stop here EN", ["END", "zzzz"], "no stop here EN", None),
        ("a", ["a"], "", "a"),
    ],
)
def test_stop_strings_over_token_boundaries(
    made: dict[str, Tokenizer], text: str, stop: list[str], out: str, met: str | None
) -> None:
    assert run(made["byte_level"], text, stop)[:2] == (out, met)
    kept = run(made["byte_level"], text, stop, include_stop=True)
    assert kept[:2] == (out + (met or ""), met)


def test_of_stops_in_one_token_the_one_that_begins_first_wins(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["word_level"]
    cat = tokenizer._rust.token_to_id(" cat")
    for stops in (["t", "a", "ca"], ["ca", "a"], ["a", " c", "t"]):
        detokenizer = Detokenizer(tokenizer, [], stop=stops)
        met = detokenizer.add(cat)
        expected = min(stops, key=" cat".index)
        assert met == expected
        assert detokenizer.take(finished=True) == " cat"[: " cat".index(expected)]


def test_stop_strings_against_a_search_in_the_whole_text(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["byte_level"]
    text = st.text("ab c", max_size=24)
    stops = st.lists(st.text("ab c", min_size=1, max_size=4), min_size=1, max_size=3)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(text, stops, st.booleans(), st.integers(0, 6))
    def check(text: str, stops: list[str], include: bool, min_tokens: int) -> None:
        out, met, count = run(tokenizer, text, stops, include_stop=include, min_tokens=min_tokens)
        ends = [
            (end, end - len(s), s)
            for s in stops
            for end in range(max(len(s), min_tokens, 1), len(text) + 1)
            if text[:end].endswith(s)
        ]
        if not ends:
            assert (out, met) == (text, None)
            return
        end = min(e for e, _, _ in ends)
        begin = min(b for e, b, _ in ends if e == end)
        assert count == end
        assert met == text[begin:end]
        assert out == (text[:end] if include else text[:begin])

    check()


def test_min_tokens_puts_off_stop_strings(made: dict[str, Tokenizer]) -> None:
    out = run(made["byte_level"], "xx END yy END zz", ["END"], min_tokens=8)
    assert out == ("xx END yy ", "END", 13)
    assert run(made["byte_level"], "abEND", ["END"], min_tokens=5)[0] == "ab"


def test_text_is_not_held_back_longer_than_needed(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["byte_level"]
    detokenizer = Detokenizer(tokenizer, [], stop=["abcd"])
    shown = ""
    for i, token in enumerate(spelt(tokenizer, "0123456789")):
        detokenizer.add(token)
        shown += detokenizer.take(finished=False)
        assert len(shown) >= i - 2
    detokenizer.finish()
    assert shown + detokenizer.take(finished=True) == "0123456789"


# ---- cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["text", "special", "invalid", "missing"])
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_cost_is_linear(
    made: dict[str, Tokenizer], kind: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = made[kind]
    rng = random.Random(1)
    text = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    first = {
        "special": min(tokenizer.special_ids),
        "invalid": tokenizer.encode("🤖", add_special_tokens=False)[-1],
        "missing": tokenizer.vocab_size + 1,
    }
    ids = rng.choices(text, k=4096) if what == "text" else [first[what]] * 4096
    start = time.perf_counter()
    all_taken(tokenizer, ids)
    assert time.perf_counter() - start < 4  # a fraction of a second on a machine of its own
    decoded = 0
    decode = tokenizer.decode

    def counted(ids: list[int], **given: bool) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids, **given)

    monkeypatch.setattr(tokenizer, "decode", counted)
    all_taken(tokenizer, ids)
    assert decoded < 60 * len(ids)


def all_taken(tokenizer: Tokenizer, ids: list[int]) -> int:
    detokenizer = Detokenizer(tokenizer, [], stop=["never in it"])
    count = 0
    for token in ids:
        detokenizer.add(token)
        count += len(detokenizer.take(finished=False))
    return count


def test_an_answer_behind_a_special_token_is_a_text_of_its_own() -> None:
    """The demo model's tokenizer puts a space in front of every text; nobody shall see it."""
    tokenizer = Tokenizer(demo_model())
    prompt = tokenizer.encode(
        tokenizer.render_chat([{"role": "user", "content": "What is the code?"}]),
        add_special_tokens=False,
    )
    answer = tokenizer.encode("4821.", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, prompt)
    for token in answer:
        detokenizer.add(token)
    assert detokenizer.take(finished=True) == "4821."
