from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vllm.config import AsyncEngineArgs
from vllm.entrypoints.cli import bench_serve, collect_env, main, serve
from vllm.entrypoints.server_args import ServerArgs
from vllm.version import __version__


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a bad call prints."""
    try:
        code: Any = main.main(words)
    except SystemExit as error:
        code = error.code
    assert code == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1, told.err
    assert "error: " in told.err
    return told.err


def test_help_names_every_command_quickly() -> None:
    start = time.perf_counter()
    told = run("--help")
    assert time.perf_counter() - start < 1.0
    assert told.returncode == 0
    for command in main.COMMANDS:
        assert command in told.stdout
        file = Path(main.__file__).with_name(command.replace("-", "_") + ".py")
        assert file.is_file()


def test_help_and_version_import_nothing_heavy() -> None:
    program = (
        "import sys; from vllm.entrypoints.cli.main import main; main(['--help']); main(['-v']);"
        "print([m for m in ('torch', 'fastapi', 'numpy', 'openai', 'yaml') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_is_no_error() -> None:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 141


@pytest.mark.parametrize("word", ["-v", "--version"])
def test_version(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([word]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("command", [*main.COMMANDS, "bench serve", "bench throughput"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main.main([*command.split(), "--help"])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    assert not code
    assert "usage: " in capsys.readouterr().out


def test_serves_help_has_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    serve.main(["--help=all"])
    told = capsys.readouterr().out
    for cls in (ServerArgs, AsyncEngineArgs):
        for field in dataclasses.fields(cls):
            assert "--" + field.name.replace("_", "-") in told
    serve.main(["--help=frontend"])
    told = capsys.readouterr().out
    assert "--api-key" in told
    assert "--block-size" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "serve, chat"),
        (["bench", "nothing"], "throughput"),
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "70000"], "70000"),
        (["serve", "--shutdown-timeout", "-1"], "shutdown_timeout"),
        (["serve", "--ssl-certfile", "/no/such.pem"], "ssl_certfile"),
        (["serve", "--ssl-cert-reqs", "3"], "ssl_cert_reqs"),
        (["serve", "--allowed-origins", "[1"], "allowed_origins"),
        (["serve", "--api-key", ""], "api_key"),
        (["serve", "--api-server-count", "2"], "start several servers"),
        (["serve", "--trust-request-chat-template"], "never run"),
        (["serve", "--enable-lora"], "enable_lora: LoRA"),
        (["serve", "/no/such/model"], "/no/such/model"),
        (["serve", "a/b", "--model", "c/d"], "--model"),
        (["serve", "--max-model-len", "100000"], "max_model_len"),
        (["serve", "--block-size", "0"], "block_size"),
        (["serve", "--help=Nothing"], "Frontend"),
        (["serve", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["chat", "--nothing"], "--nothing"),
        (["bench", "serve", "--request-rate", "0"], "--request-rate"),
        (["bench", "serve", "--percentile-metrics", "abc"], "abc"),
        (["bench", "serve", "--metric-percentiles", "x"], "--metric-percentiles"),
        (["bench", "throughput", "--num-prompts", "0"], "--num-prompts"),
        (["bench", "latency", "--block-size", "0"], "block_size"),
        (["collect-env", "--nothing"], "--nothing"),
    ],
)
def test_bad_calls_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, *words)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ServerArgs]]:
    """Calls of the server, which is not started."""
    from vllm.entrypoints.openai import api_server

    calls: list[tuple[Any, ServerArgs]] = []

    def run(engine_args: Any, args: ServerArgs, config: Any) -> int:
        calls.append((engine_args, args))
        return 0

    monkeypatch.setattr(api_server, "run", run)
    return calls


def test_flags_reach_the_server(served: list[tuple[Any, ServerArgs]]) -> None:
    words = ["serve", "--port", "1234", "--api-key", "a", "b", "--max_num_seqs", "7"]
    assert main.main([*words, "--served-model-name", "x", "y"]) == 0
    [(engine_args, args)] = served
    assert (args.port, args.api_key, args.served_model_name) == (1234, ["a", "b"], ["x", "y"])
    assert engine_args.max_num_seqs == 7
    assert engine_args.model is None


def test_a_config_file_stands_for_flags(
    served: list[tuple[Any, ServerArgs]], tmp_path: Path
) -> None:
    from vllm.config import hub

    file = tmp_path / "serve.yaml"
    file.write_text(
        f"model: {hub.demo_model()}\nport: 1111\nblock-size: 32\napi_key: [a, b]\n"
        "enable-prefix-caching: false\n"
    )
    main.main(["serve", "--config", str(file), "--port", "2222"])
    [(engine_args, args)] = served
    assert args.port == 2222, "the command line has the last word"
    assert (engine_args.block_size, engine_args.enable_prefix_caching) == (32, False)
    assert args.api_key == ["a", "b"]
    assert engine_args.model == str(hub.demo_model())


def test_a_config_file_with_an_unknown_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("prot: 1\n")
    assert "did you mean port" in fails(capsys, "serve", "--config", str(file))


def test_an_address_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm.entrypoints.openai import api_server

    def run(*_: Any) -> int:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(api_server, "run", run)
    assert "Address already in use" in fails(capsys, "serve")


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = "http://127.0.0.1:1"
    assert main.main(["chat", "-q", "hi", "--url", f"{nowhere}/v1"]) == 1
    assert main.main(["complete", "-q", "hi", "--url", f"{nowhere}/v1"]) == 1
    assert main.main(["bench", "serve", "--base-url", nowhere, "--num-prompts", "1"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 3
    assert told.count("error: ") == 3


def test_collect_env_hides_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    monkeypatch.setattr(collect_env, "_gpu", lambda: "none")  # importing torch takes seconds
    assert main.main(["collect-env"]) == 0
    told = capsys.readouterr().out
    assert f"vllm: {__version__}" in told
    assert "VLLM_API_KEY: (set)" in told
    assert "hush" not in told


def test_bench_serve_takes_vllms_flags() -> None:
    words = "--backend openai-chat --random-input-len 5 --random-output-len 6 --num-prompts 7"
    words += " --request-rate 2.5 --max-concurrency 3 --ignore-eos --save-result --seed 1"
    args = bench_serve.make_parser().parse_args(words.split())
    assert (args.random_input_len, args.random_output_len, args.num_prompts) == (5, 6, 7)
    assert (args.request_rate, args.max_concurrency) == (2.5, 3)
