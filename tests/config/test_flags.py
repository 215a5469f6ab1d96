"""The parser of flags: short forms, keys behind dots, sizes, and what it says of a bad line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.given import make_parser, parse
from vllm.config import AsyncEngineArgs, EngineArgs
from vllm.config.flags import FlexibleArgumentParser, human_size


def test_short_forms_and_sizes() -> None:
    args = parse(*"-tp 1 -pp 1 -dp 1 -O3 -cc.level 2 -q awq --max-model-len 1k".split())
    assert (args.optimization_level, args.compilation_config) == (3, {"level": 2})
    assert (args.quantization, args.max_model_len) == ("awq", 1000)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hf-overrides.a", "1"], {"a": 1}),
        (["--hf_overrides.rope_scaling.my_factor=2.5"], {"rope_scaling": {"my_factor": 2.5}}),
        (["--hf-overrides.a", "x", "--hf-overrides.b", "[1, 2]"], {"a": "x", "b": [1, 2]}),
        (["--hf-overrides.a", "1", "--hf-overrides", '{"a": 2, "b": 3}'], {"a": 2, "b": 3}),
        (["--hf-overrides", '{"b": {"c": 1}}', "--hf-overrides.b.d", "2"], {"b": {"c": 1, "d": 2}}),
        (["--hf-overrides.a=x=y"], {"a": "x=y"}),
    ],
)
def test_keys_behind_dots(words: list[str], expected: dict[str, Any]) -> None:
    assert parse(*words).hf_overrides == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seed.a", "1"], "seed.a"),
        (["--hf-overides.a", "1"], "did you mean --hf-overrides"),
        (["--hf-overrides.a", "1", "--hf-overrides.a.b", "1"], "'a' is not an object"),
        (["--hf-overrides", "[1]"], "not a JSON object"),
    ],
)
def test_keys_behind_dots_that_cannot_be(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert says in capsys.readouterr().err


BAD_LINES = [
    (["--max-model-length", "5"], "--max-model-len"),
    (["--enable_prefix_cachin"], "--enable-prefix-caching"),
    (["--seed", "x"], "--seed"),
    (["--dtype", "int8"], "--dtype"),
    (["--max-model-len", "5q"], "--max-model-len"),
    (["--hf-overrides", "[1]"], "--hf-overrides"),
    (["--hf-overrides", "{"], "--hf-overrides"),
    (["one", "two"], "two"),
    (["--config"], "--config"),
    (["--config", "/nowhere/at/all.yaml"], "/nowhere/at/all.yaml"),
]


@pytest.mark.parametrize(("words", "told"), BAD_LINES, ids=lambda v: str(v)[:40])
def test_a_bad_line_is_exit_code_2_and_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("0", 0), ("4096", 4096), ("4k", 4000), ("4K", 4096), ("4Ki", 4096), ("4ki", 4096)],
        *[("2m", 2_000_000), ("2M", 2 << 20), ("1g", 10**9), ("1G", 1 << 30), ("1GiB", 1 << 30)],
        *[("1.5k", 1500), ("0.5K", 512), (" 8K ", 8192), ("1T", 1 << 40), ("1t", 10**12)],
    ],
)
def test_human_sizes(text: str, size: int) -> None:
    assert human_size(text) == size
    assert parse("--max-model-len", text).max_model_len == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.0001k", "1e3", "4x", "100i", "1 k", "0x10"])
def test_what_is_no_human_size(text: str) -> None:
    with pytest.raises(SystemExit):
        parse(f"--max-model-len={text}")


def test_help_says_what_units_mean() -> None:
    """A unit in a help text must mean what the parser takes it for."""
    helps = make_parser().format_help()
    assert "8K means 8192" in " ".join(helps.split())
    assert "2G means 2 GiB" in " ".join(helps.split())
    assert (human_size("8K"), human_size("2G")) == (8192, 2 << 30)


def test_auto_is_the_models_own_length() -> None:
    for args in (
        parse("--max-model-len", "auto"),
        EngineArgs(max_model_len="auto"),
        EngineArgs(max_model_len=-1),
    ):
        config = args.create_engine_config()
        assert config.model.max_model_len == config.model.hf["max_position_embeddings"]
        assert config.model.max_len_given is False
    with pytest.raises(SystemExit):
        parse("--long-prefill-token-threshold", "auto")


def test_a_programs_own_parser_takes_the_engines_flags() -> None:
    parser = FlexibleArgumentParser()
    parser.add_argument("--mine", type=int)
    parsed = EngineArgs.add_cli_args(parser).parse_args(["--mine", "1", "--block-size", "32"])
    assert EngineArgs.from_cli_args(parsed) == EngineArgs(block_size=32)
    assert type(AsyncEngineArgs.from_cli_args(parsed)) is AsyncEngineArgs
