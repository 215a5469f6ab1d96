"""`--config FILE.yaml`: what a file may hold, and what counts more than it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.given import in_file, make_parser, parse
from vllm.config import EngineArgs
from vllm.config.flags import FlexibleArgumentParser


def test_the_command_line_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    path = in_file(tmp_path, {"seed": 1, "block-size": 32, "enable-prefix-caching": False})
    for words in (["--config", path, "--seed", "2"], ["--seed", "2", "--config", path]):
        args = parse(*words, "--enable-prefix-caching")
        assert (args.seed, args.block_size, args.max_logprobs) == (2, 32, 20)
        assert args.enable_prefix_caching is True


@pytest.mark.parametrize(
    "words",
    [["mine"], ["mine", "--seed", "1"], ["--seed", "1", "mine"], ["--enforce-eager", "mine"]],
)
@pytest.mark.parametrize("more", [{}, {"served-model-name": ["a", "b"]}, {"seed": 3}])
def test_a_positional_model_beats_the_files(
    tmp_path: Path, words: list[str], more: dict[str, Any]
) -> None:
    path = in_file(tmp_path, {"model": "theirs"} | more)
    for with_file in ([*words, "--config", path], ["--config", path, *words]):
        parsed = make_parser().parse_args(with_file)
        assert (parsed.model_tag, parsed.model) == ("mine", None)
        assert parsed.served_model_name == more.get("served-model-name")


def test_the_files_model_counts_when_there_is_no_other(tmp_path: Path) -> None:
    path = in_file(tmp_path, {"model": "theirs", "served_model_name": ["a", "b"]})
    assert parse("--config", path, "--seed", "1").model == "theirs"
    assert parse("--config", path, "--model", "mine").model == "mine"
    positional = FlexibleArgumentParser(prog="test")
    positional.add_argument("model", nargs="?")
    assert positional.parse_args(["--config", in_file(tmp_path, {"model": "x"})]).model == "x"


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    values = {"plain": False, "enforce_eager": False, "seed": None, "served-model-name": []}
    parsed = make_parser().parse_args(["--config", in_file(tmp_path, values)])
    assert parsed.plain is False
    assert parsed.served_model_name is None
    assert make_parser().parse_args(["--config", in_file(tmp_path, {"plain": True})]).plain is True
    assert parse("--config", in_file(tmp_path, "max-model-len: 1k")).max_model_len == 1000
    assert parse("--config", in_file(tmp_path, "")) == EngineArgs()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("max_modle_len: 5", "max-model-len"),
        ("nonsense-altogether-xyz: 5", "nonsense"),
        ("- seed", "names and values"),
        ("seed: [", "--config"),
        ("seed: x", "--seed"),
        ("seed: false", "--no-seed"),
        ("seed: [1, 2]", "seed takes one value"),
        ("dtype: int8", "--dtype"),
        ("\x00", "--config"),
    ],
)
def test_a_bad_file_is_exit_code_2_and_told(
    tmp_path: Path, content: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--config", in_file(tmp_path, content))
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
