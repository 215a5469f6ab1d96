"""`vllm serve --simulator`: a drop-in server without a model."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from server_process import Server


def test_it_serves_fails_as_asked_and_writes_its_prefix_metrics(tmp_path: Path) -> None:
    server = Server(
        *("--simulator", "echo", "--simulator-model", "Qwen3-32B", "--max-model-len", "200"),
        *("--simulator-latency", "constant:step=0.002", "--block-size", "8"),
        *("--simulator-failures", "request=0.2,stream=0.2", "--seed", "3"),
        *("--prefix-metrics", str(tmp_path / "sim"), "--kv-cache-metrics"),
        *("--num-gpu-blocks-override", "200"),
    )
    try:
        url = f"{server.url}/v1/completions"
        headers = {"X-Workload": "qa", "X-Prefix-Mode": "multi", "X-Request-Id": "mine"}
        prompt = "The code of amber-fox is 4821. The code of lucky-owl is"
        body = {"prompt": prompt, "max_tokens": 50}
        answers = [httpx.post(url, json=body, headers=headers) for _ in range(12)]
        good = [a.json() for a in answers if a.status_code == 200]
        assert good and all(a["choices"][0]["text"].strip() == prompt for a in good), "echo"
        assert {a["choices"][0]["finish_reason"] for a in good} == {"stop"}
        failed = [a for a in answers if a.status_code != 200]
        assert failed and {a.status_code for a in failed} == {500}
        assert all(a.json()["error"]["type"] == "InternalServerError" for a in failed)
        streams = [httpx.post(url, json=body | {"stream": True}) for _ in range(12)]
        begun = [answer.text for answer in streams if answer.status_code == 200]
        assert all(text.endswith("data: [DONE]\n\n") for text in begun)
        broken = [text for text in begun if '"error"' in text]
        assert 0 < len(broken) < len(begun)
        refused = httpx.post(url, json=body, headers={"X-Prefix-Mode": "m" * 99})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prefix_mode"
        own = httpx.post(url, json=body | {"workload": "own"}, headers=headers)
        assert own.status_code in (200, 500)
        assert "vllm:kv_block_lifetime_seconds_bucket" in httpx.get(f"{server.url}/metrics").text
    finally:
        assert server.stop() == 0, "".join(server.log)
    rows = [json.loads(line) for line in (tmp_path / "sim_requests.jsonl").open()]
    assert [row["workload"] for row in rows] == ["qa"] * 12 + ["unknown"] * 12 + ["own"]
    assert rows[0]["mode"] == "multi" and rows[0]["request_id"].startswith("cmpl-mine-0-")
    assert rows[0]["reused_tokens"] == 0 < rows[1]["reused_tokens"]
    blocks = [json.loads(line) for line in (tmp_path / "sim_blocks.jsonl").open()]
    assert {block["hits"] for block in blocks} == {len(rows) - 1}
