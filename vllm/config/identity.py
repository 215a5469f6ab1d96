"""Which weights these are, in 32 bytes: what makes cached KVs of one model useless to another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vllm.config.model import ModelConfig

SAMPLES, SAMPLE_BYTES = 64, 64 << 10


def weights_identity(model: ModelConfig, load_format: str) -> bytes:
    """SHA-256 over config.json (overrides applied) and the weight files.

    Of each file: its name, its size, its header and 64 samples of 64 KiB spread over it; reading
    all of a large model would take longer than loading it. Random weights are named by their seed.
    """
    digest = hashlib.sha256(json.dumps(model.hf, sort_keys=True).encode())
    if load_format == "dummy":
        digest.update(f"dummy {model.seed}".encode())
        return digest.digest()
    for path in sorted(model.folder.glob("*.safetensors")):
        _add_file(digest, path)
    return digest.digest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    name = path.name.encode()
    digest.update(len(name).to_bytes(8, "little") + name + size.to_bytes(8, "little"))
    with path.open("rb") as file:
        header = min(int.from_bytes(file.read(8), "little"), 100 << 20)
        digest.update(file.read(header))
        stride = max(SAMPLE_BYTES, (size - header) // SAMPLES)
        for at in range(header, size, stride):
            file.seek(at)
            digest.update(file.read(SAMPLE_BYTES))
