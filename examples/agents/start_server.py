"""Start `vllm serve` with the settings of `.env`.

python -m examples.agents.start_server [--profiling] [--log-level L] [--reuse-addr] [vllm serve's]

What follows goes to `vllm serve` as it is, after what `.env` says, so it has the last word.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from examples.agents.settings import Settings, read


def command(settings: Settings, log_level: str, rest: list[str]) -> list[str]:
    """What to run."""
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    if settings.model:
        words.append(settings.model)
    if settings.server_config:
        words += ["--config", settings.server_config]
    words += ["--host", settings.host, "--port", str(settings.port)]
    if settings.device:
        words += ["--device", settings.device]
    return [*words, "--uvicorn-log-level", log_level, *rest]


def in_use(host: str, port: int) -> bool:
    """Whether somebody holds the address, be it only a connection that is about to end."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--log-level", default="info", help="Of the server's log.")
    parser.add_argument("--profiling", action="store_true", help="Allow /start_profile.")
    parser.add_argument(
        "--reuse-addr",
        action="store_true",
        help="Take the port though connections of an earlier server linger on it.",
    )
    args, rest = parser.parse_known_args()
    settings = read()
    if not args.reuse_addr and in_use(settings.host, settings.port):
        print(f"{settings.host}:{settings.port} is in use (--reuse-addr?)", file=sys.stderr)
        return 1
    environment = dict(os.environ)
    if args.profiling:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    words = command(settings, args.log_level, rest)
    os.execvpe(words[0], words, environment)


if __name__ == "__main__":
    sys.exit(main())
