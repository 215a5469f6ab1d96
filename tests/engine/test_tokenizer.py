"""The tokenizer against transformers': the same ids, the same chats, and what it must refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.made_tokenizers import BOS, EOS, KINDS, TEXTS, TURN, folder
from vllm.core.errors import VLLMValidationError
from vllm.engine import templates
from vllm.engine.tokenizer import Tokenizer

PROBES = [*TEXTS, "", " ", "  leading", f"a{TURN}b {EOS}", "\n\n\t", "\u0000", "🤖" * 5, "x" * 300]


# ---- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_transformers(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    tokenizer = Tokenizer(folder(tmp_path, kind, **config))
    other = tokenizer.hf()
    for text in PROBES:
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == other.encode(text, add_special_tokens=special), (text, special)
            for skip in (True, False):
                expected = other.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
                assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_truncation_and_padding_left_in_the_file_do_not_count(tmp_path: Path) -> None:
    made = KINDS["byte_level"]()
    made.enable_truncation(4)
    made.enable_padding(length=6)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a long enough text")) == "a long enough text"
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_names_come_from_either_file(tmp_path: Path) -> None:
    folder(tmp_path, "byte_level", eos_token={"content": EOS, "lstrip": False})
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)
    assert tokenizer.token(tokenizer.eos_token_id) == EOS
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer(tmp_path).eos_token_id is None
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": TURN}))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.token(tokenizer.eos_token_id) == TURN


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokens_text_keeps_its_space(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer(folder(tmp_path, kind))
    ids = tokenizer.encode("the cat sat", add_special_tokens=False)
    texts = [tokenizer.text_of(i) for i in ids]
    assert "".join(texts).lstrip() == "the cat sat"
    assert any(text.startswith(" ") for text in texts[1:])
    assert tokenizer.text_of(tokenizer.eos_token_id) == EOS
    assert tokenizer.text_of(tokenizer.vocab_size + 3) == ""
    assert tokenizer.token(tokenizer.vocab_size + 3) == ""


def test_a_byte_of_a_character_has_a_replacement_for_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path, "metaspace"))
    ids = tokenizer.encode("🤖", add_special_tokens=False)
    assert tokenizer.text_of(ids[-1]) == "\ufffd"


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VLLMValidationError, match="Unicode"):
        Tokenizer(folder(tmp_path, "byte_level")).encode("a\ud800b")


def test_a_folder_without_tokenizer_json_is_converted(tmp_path: Path) -> None:
    fast = json.loads(KINDS["byte_level"]().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(fast["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(m) for m in fast["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer"})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = Tokenizer(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_folder_without_any_tokenizer_is_a_value_error(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


# ---- chats ------------------------------------------------------------------------------------

TEMPLATES = {
    "turns": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "default_system": """
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = 'You are helpful.' %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}[SYS]{{ system }}[/SYS]
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + m.content | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + m.content | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "tools": """
{%- if tools is not none and tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- '\n' + tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>' + tools | tojson(indent=2) }}
    {{- tools[0] | tojson(separators=(',', ':'), sort_keys=true) }}
{%- endif %}
{%- for m in messages %}
    {{- m.role ~ ': ' ~ (m.content or '') }}
    {%- for call in m.tool_calls or [] %}
        {{- '<call>' ~ call.function.name ~ ' ' ~ call.function.arguments | tojson ~ '</call>' }}
    {%- endfor %}
{%- endfor %}
""",
    "controls": """
{%- set ns = namespace(seen=0, last='') %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
    {%- if ns.seen > 2 %}{% break %}{% endif %}
    {{- loop.index ~ m.content.upper() ~ m['content'].split(' ')[-1] }}
{%- endfor %}
{{- ns.seen }}{{ dict(a=1) | tojson }}
{%- if documents is not none %}docs{% endif %}
{%- if flavour is defined %}{{ flavour }}{% endif %}
""",
    "trimmed": "{% for m in messages %}<{{ m.content | trim }}></s>{% endfor %}",
    "date": "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "generation": """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{- m.content }}!{%- endgeneration %}
    {%- else %}{{- m.content }}{%- endif %}
{%- endfor %}
""",
    "blocks": "{% for m in messages %}\n  {% if true %}\n  {{ m.content }}\n  {% endif %}\n"
    "{% endfor %}\nend\n",
    "escapes": "{% for m in messages %}{{ m.content | tojson }}<&'\">{% endfor %}",
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello  there "}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Grüße <b>&'\" 😀"}],
    [
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "three four\n"},
        {"role": "user", "content": "five\nsix"},
        {"role": "assistant", "content": "The answer"},
    ],
]
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "x": "é"}}}
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(folder(tmp_path_factory.mktemp("chat"), "byte_level", unk_token=TURN))


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_rendered_as_transformers_does(tokenizer: Tokenizer, name: str) -> None:
    for chat in CHATS:
        for extra in ({}, {"tools": TOOLS}, {"flavour": "sweet"}):
            for prompt in (True, False):
                given = {"chat_template": TEMPLATES[name], "add_generation_prompt": prompt} | extra
                expected = tokenizer.hf().apply_chat_template(chat, tokenize=False, **given)
                assert tokenizer.render_chat(chat, **given) == expected


@pytest.mark.parametrize("content", ["The answer", "The answer ", " x\n\n", "e", "end", "a|i"])
@pytest.mark.parametrize("name", ["turns", "default_system", "tools", "trimmed"])
def test_a_message_that_goes_on_is_rendered_as_transformers_does(
    tokenizer: Tokenizer, name: str, content: str
) -> None:
    chat = [{"role": "user", "content": "a e end"}, {"role": "assistant", "content": content}]
    given = {
        "chat_template": TEMPLATES[name],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    expected = tokenizer.hf().apply_chat_template(chat, tokenize=False, **given)
    assert tokenizer.render_chat(chat, **given) == expected
    assert chat[-1]["content"] == content


@pytest.mark.parametrize(
    "chat",
    [[], [{"role": "user"}], [{"role": "user", "content": None}]],
    ids=["none", "no", "null"],
)
def test_nothing_to_go_on_with_is_refused(tokenizer: Tokenizer, chat: list[dict[str, Any]]) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        tokenizer.render_chat(
            chat, chat_template="x", continue_final_message=True, add_generation_prompt=False
        )
    assert caught.value.parameter == "continue_final_message"


def test_a_template_that_drops_the_message_cannot_go_on_with_it(tokenizer: Tokenizer) -> None:
    with pytest.raises(VLLMValidationError, match="continue_final_message"):
        tokenizer.render_chat(
            CHATS[0], chat_template="x", continue_final_message=True, add_generation_prompt=False
        )


def test_going_on_and_a_new_turn_exclude_each_other(tokenizer: Tokenizer) -> None:
    with pytest.raises(VLLMValidationError, match="exclude"):
        tokenizer.render_chat(CHATS[0], chat_template="x", continue_final_message=True)


def test_without_a_template_the_chat_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(VLLMValidationError, match="chat template") as caught:
        tokenizer.render_chat(CHATS[0])
    assert caught.value.parameter == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__name__ }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ strftime_now.__globals__['os'].system('true') }}",
        "{{ '{0.__class__.__name__}'.format(messages) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{{ raise_exception('not like this') }}",
        "{{ messages[0].content.no() }}",
        "{{ [] | first | tojson }}",
        "{% include 'x' %}",
    ],
)
def test_templates_that_break_or_break_out_are_refused(tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(VLLMValidationError, match="cannot render") as caught:
        tokenizer.render_chat([dict(CHATS[0][0])], chat_template=template)
    assert caught.value.parameter == "messages"
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ '{0.__class__}'.format(tools) }}",
    ],
)
def test_what_templates_may_not_see_is_nothing(tokenizer: Tokenizer, template: str) -> None:
    assert tokenizer.render_chat(CHATS[0], chat_template=template) == ""


def test_a_templates_own_words_reach_the_user(tokenizer: Tokenizer) -> None:
    chat = [{"role": "assistant", "content": "first"}]
    with pytest.raises(VLLMValidationError, match="Roles must alternate"):
        tokenizer.render_chat(chat, chat_template=TEMPLATES["default_system"])


def test_a_huge_chat_is_stopped_while_it_is_rendered(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "MAX_RENDERED_CHARS", 10_000)
    endless = (
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    )
    with pytest.raises(VLLMValidationError, match="too long"):
        tokenizer.render_chat(CHATS[0], chat_template=endless)
    with pytest.raises(VLLMValidationError, match="too long"):
        tokenizer.render_chat(
            [{"role": "user", "content": "x" * 10_001}], chat_template=TEMPLATES["turns"]
        )
    just = tokenizer.render_chat(
        [{"role": "user", "content": "x" * 9_000}], chat_template="{{ messages[0].content }}"
    )
    assert len(just) == 9_000
    with pytest.raises(VLLMValidationError):
        tokenizer.render_chat(CHATS[0], chat_template="{% for a in range(10**9) %}x{% endfor %}")


def test_where_templates_come_from(tmp_path: Path) -> None:
    chat = CHATS[0]
    folder(tmp_path, "byte_level", chat_template="from the config")
    assert Tokenizer(tmp_path).render_chat(chat) == "from the config"
    named = [{"name": "default", "template": "usual"}, {"name": "tool_use", "template": "tools"}]
    folder(tmp_path, "byte_level", chat_template=named)
    assert Tokenizer(tmp_path).render_chat(chat) == "usual"
    assert Tokenizer(tmp_path).render_chat(chat, tools=TOOLS) == "tools"
    assert Tokenizer(tmp_path, "given").render_chat(chat, tools=TOOLS) == "given"
    (tmp_path / "chat_template.jinja").write_text("from its file")
    assert Tokenizer(tmp_path).render_chat(chat) == "from its file"
    assert Tokenizer(tmp_path, "given").render_chat(chat) == "given"
    assert Tokenizer(tmp_path, "given").render_chat(chat, chat_template="for once") == "for once"
    assert Tokenizer(tmp_path, "given").hf().chat_template == "given"


def test_names_of_special_tokens_are_known_to_templates(tokenizer: Tokenizer) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}"
    assert tokenizer.render_chat(CHATS[0], chat_template=template) == f"{BOS}|{EOS}|{TURN}|"


def test_the_transformers_tokenizer_is_made_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.hf() is tokenizer.hf()


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers makes an empty tokenizer up from config.json, which encodes all as nothing."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "vocab_size": 300}')
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "expression",
    [
        "'x' * 10**10",
        "10**10 * 'x'",
        "[0] * 10**9",
        "9**99999999",
        "'x'.center(10**10)",
        "'x'.zfill(n)",
    ],
)
def test_no_expression_is_huge(tmp_path: Path, expression: str) -> None:
    template = "{% set n = 999999999 %}{{ " + expression + " }}"
    tokenizer = Tokenizer(folder(tmp_path, "byte_level"), template)
    with pytest.raises(VLLMValidationError, match="too large"):
        tokenizer.render_chat([{"role": "user", "content": "a"}])


def test_ordinary_arithmetic_of_templates(tmp_path: Path) -> None:
    template = "{{ '-' * 3 }}{{ 2 ** 10 }}{{ 'x'.center(5) }}{{ 1.5 * 2 }}"
    tokenizer = Tokenizer(folder(tmp_path, "byte_level"), template)
    assert tokenizer.render_chat([{"role": "user", "content": "a"}]) == "---1024  x  3.0"


def test_spans_are_the_tokens_that_hold_the_characters(tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder(tmp_path, "byte_level"))
    text = "Hello world, the é is two bytes"
    ids = tokenizer.encode(text)
    for start, end in ((0, 5), (6, 11), (17, 18), (0, len(text)), (3, 8)):
        [(first, last)] = tokenizer.spans(text, [(start, end)])
        assert text[start:end] in tokenizer.decode(ids[first:last])
        for less in ((first + 1, last), (first, last - 1)):
            assert text[start:end] not in tokenizer.decode(ids[slice(*less)])
    both = tokenizer.spans(text, [(0, 5), (90, 99), (6, 11)])
    assert both == [*tokenizer.spans(text, [(0, 5)]), *tokenizer.spans(text, [(6, 11)])]
    assert tokenizer.spans("", [(0, 3)]) == []
