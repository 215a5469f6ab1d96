"""Where logprobs say that a prompt's tokens stand in its text, for tokenizers of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.made_tokenizers import BOS, KINDS, TEXTS, folder
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.openai.logprobs import LogprobWriter


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_the_texts(tmp_path: Path, kind: str, as_ids: bool) -> None:
    tokenizer = Tokenizer(folder(tmp_path, kind))
    texts = TEXTS if kind != "word_level" else ["the cat sat.", " the cat,\n1 2 ünïcode😀 the"]
    whole = 0
    for text in texts:
        ids = tokenizer.encode(text)
        shown = tokenizer.decode(ids)
        told = LogprobWriter(tokenizer, as_ids).completion(ids, [None] * len(ids), shown, len(ids))
        assert told.text_offset == sorted(told.text_offset)
        for token_id, at in zip(ids, told.text_offset, strict=True):
            token = tokenizer.text_of(token_id)
            if token == BOS:
                assert at == 0
            elif "\ufffd" not in token:
                whole += 1
                assert shown.startswith((token, token.removeprefix(" ")), at), (token, at)
    assert whole > 10


def test_what_follows_an_echo_begins_at_its_end(tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path, "metaspace"))
    text = "Hello world, this is some text"
    ids = tokenizer.encode(text)
    made = tokenizer.encode("Hello", add_special_tokens=False)
    writer = LogprobWriter(tokenizer, False)
    told = writer.completion(ids + made, [None] * len(ids + made), text, len(ids))
    assert told.text_offset[len(ids)] == len(text)
    later = writer.completion(made, [None] * len(made))
    assert later.text_offset[0] == len(text) + sum(len(tokenizer.text_of(i)) for i in made)
