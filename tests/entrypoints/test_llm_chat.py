"""`LLM.chat`: conversations, their templates, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import LLM, SamplingParams, VLLMValidationError

from .offline import FEW, run, tokens

CHAT = [{"role": "user", "content": "What is the code?"}]


def test_chat_is_generate_on_the_rendered_text(llm: LLM) -> None:
    (one,) = llm.chat(CHAT, FEW, use_tqdm=False)
    text = llm.llm_engine.tokenizer.render_chat(CHAT)
    assert one.prompt == text
    same = llm.get_tokenizer().apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert text == same
    ids = llm.llm_engine.tokenizer.encode(text, add_special_tokens=False)
    assert one.prompt_token_ids == ids
    assert tokens([one]) == tokens(run(llm, ids))


def test_several_conversations(llm: LLM) -> None:
    other = [*CHAT, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "Why?"}]
    outputs = llm.chat([CHAT, other], [FEW, FEW], use_tqdm=False)
    assert [o.prompt for o in outputs] == [
        llm.llm_engine.tokenizer.render_chat(c) for c in (CHAT, other)
    ]


def test_conversations_may_be_queued(llm: LLM) -> None:
    [told] = llm.chat(CHAT, FEW, use_tqdm=False)
    first = llm.enqueue_chat(CHAT, FEW)
    rest = llm.enqueue_chat([CHAT, CHAT], FEW, add_generation_prompt=True)
    done = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in done] == first + rest
    assert tokens(done) == tokens([told]) * 3


def test_chat_options(llm: LLM) -> None:
    def prompt(messages: Any, **given: Any) -> str | None:
        return llm.chat(messages, FEW, use_tqdm=False, **given)[0].prompt

    template = "{{ messages[0].content }}{{ tools | tojson if tools }}{{ flavour }}"
    given = {
        "chat_template": template,
        "tools": [{"a": 1}],
        "chat_template_kwargs": {"flavour": "!"},
    }
    assert prompt(CHAT, **given) == 'What is the code?[{"a": 1}]!'
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the code?"}]
    assert (
        prompt([{"role": "user", "content": parts}], chat_template=template) == "What is\nthe code?"
    )
    last = [*CHAT, {"role": "assistant", "content": "The code is"}]
    text = prompt(last, add_generation_prompt=False, continue_final_message=True)
    assert text is not None
    assert text.endswith("The code is")


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [["hello"]],
        [CHAT, "hello"],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": ["hello"]}],
    ],
)
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        llm.chat(messages, FEW, use_tqdm=False)
    assert caught.value.parameter == "messages"


def test_chats_arguments_may_be_positional(llm: LLM) -> None:
    chat = [{"role": "user", "content": "hi"}]
    params = SamplingParams(temperature=0, max_tokens=3)
    [named] = llm.chat(chat, params, use_tqdm=False)
    [placed] = llm.chat(chat, params, False, None, None, None, "auto", True, False)
    assert placed.outputs[0].text == named.outputs[0].text
    with pytest.raises(VLLMValidationError, match="contents as text"):
        llm.chat(chat, params, chat_template_content_format="openai")  # type: ignore[arg-type]
