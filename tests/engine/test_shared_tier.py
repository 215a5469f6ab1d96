"""Engines that share a store: one computes, the others load. Faults are shorter hits."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.kvstore import stores
from tests.kvstore.daemon import InThread, process, until
from vllm.config import EngineArgs
from vllm.config.engine import TierConfig
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.kv.lineage import Key
from vllm.kv.spec import KVSpec, fingerprint
from vllm.kv.tiers.shared import SharedTier
from vllm.sampling_params import SamplingParams

from .test_tiers import cached, make, prompts, run, tokens


def sharing(url: str, **options) -> LLMEngine:
    return make(shared_cache=url, min_load_tokens=0, **options)


def from_shared(outputs) -> int:
    return sum(o.cached_by_source.get("shared", 0) for o in outputs)


HOSTS = "shm:///a?directory=redis://h/0&secret=/no/such/file"


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return tokens(run(make(enable_prefix_caching=False), prompts()))


@pytest.fixture(params=["file", "shm", "redis", "s3"])
def url(request, tmp_path, monkeypatch):
    if request.param in ("redis", "s3"):
        with stores.s3(monkeypatch) if request.param == "s3" else stores.redis() as made:
            yield made
        return
    if request.param == "file":
        yield f"file://{tmp_path}/kv"
        return
    daemon = InThread(tmp_path / "run" / "kv.sock", 16 << 20)
    yield f"shm://{daemon.socket}"
    daemon.check()
    daemon.stop()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_second_engine_loads_what_the_first_computed(url, expected, asynchronous):
    first = sharing(url, enable_async_swapping=asynchronous)
    assert tokens(run(first, prompts())) == expected
    second = sharing(url, enable_async_swapping=asynchronous)
    second.core.scheduler.kv.tiers.seeker._patience = 60  # S3 here is a slow imitation
    outputs = run(second, prompts())
    assert tokens(outputs) == expected
    whole = sum((len(p) - 1) // 16 * 16 for p in prompts())
    assert from_shared(outputs) == cached(outputs) == whole
    # The first finds what the second writes, though it runs already; and its own, from the device.
    first.core.scheduler.kv.tiers.seeker._patience = 60
    other = [[7] * 50, prompts()[0]]
    run(second, other)
    outputs = run(first, other)
    assert from_shared(outputs[:1]) == 48
    for engine in (first, second):
        engine.core.shutdown()


def test_beside_host_and_disk(tmp_path, expected):
    tiers = {
        "enable_multi_tier_prefix_caching": True,
        "num_cpu_blocks_override": 4,
        "disk_cache_dir": str(tmp_path / "disk"),
    }
    first = sharing(f"file://{tmp_path}/kv", **tiers)
    assert tokens(run(first, prompts())) == expected
    again = run(first, prompts())
    assert tokens(again) == expected and cached(again) > 0
    shutil.rmtree(tmp_path / "disk")
    second = sharing(f"file://{tmp_path}/kv", **tiers | {"disk_cache_dir": str(tmp_path / "d2")})
    outputs = run(second, prompts())
    assert tokens(outputs) == expected and from_shared(outputs) > 0
    for engine in (first, second):
        engine.core.shutdown()


def test_what_served_a_hit_is_shared_while_it_is_held(tmp_path):
    """A prefix that some request always holds would else never leave a busy engine."""
    first = sharing(f"file://{tmp_path}/kv")
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    for i, text in enumerate([[3] * 40, [3] * 40]):
        first.add_request(str(i), text, params)
        for _ in range(3):
            first.step()
    end = time.monotonic() + 10
    while not list((tmp_path / "kv").rglob("[0-9a-f]" * 64)):
        assert time.monotonic() < end and first.has_unfinished_requests()
        first.step()
    first.core.shutdown()


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.name != ".usage"]


def test_files_that_lie_are_shorter_hits(tmp_path, expected):
    run(sharing(f"file://{tmp_path}/kv"), prompts())
    for i, path in enumerate(files(tmp_path / "kv")):
        data = bytearray(path.read_bytes())
        if i % 2:
            data[-1 - i] ^= 1
            path.write_bytes(data[: len(data) // 2] if i % 4 == 1 else data)
    second = sharing(f"file://{tmp_path}/kv")
    outputs = run(second, prompts())
    assert tokens(outputs) == expected
    assert second.core.scheduler.kv.tiers.levels[-1].tier.damaged > 0
    again = run(second, prompts())
    assert tokens(again) == expected
    third = run(sharing(f"file://{tmp_path}/kv"), prompts())  # it was mended
    assert tokens(third) == expected and from_shared(third) == cached(third) > cached(outputs)


def test_a_folder_that_goes_while_it_is_used(tmp_path, expected):
    engine = sharing(f"file://{tmp_path}/kv")
    run(engine, prompts())
    second = sharing(f"file://{tmp_path}/kv")
    shutil.rmtree(tmp_path / "kv")
    assert tokens(run(second, prompts())) == expected
    assert tokens(run(engine, prompts())) == expected


def test_a_daemon_that_goes_and_comes_back(tmp_path, expected):
    socket = tmp_path / "run" / "kv.sock"
    engine = sharing(f"shm://{socket}")  # it is not there yet
    assert tokens(run(engine, prompts())) == expected
    daemon = InThread(socket, 16 << 20)
    end = time.monotonic() + 5
    while daemon.stat()["entries"] < 10:
        assert time.monotonic() < end
        run(engine, prompts())
    second = sharing(f"shm://{socket}")
    outputs = run(second, prompts())
    assert tokens(outputs) == expected and from_shared(outputs) > 0
    daemon.stop()
    assert tokens(run(second, prompts())) == expected


def test_two_hosts_share_what_their_daemons_have(tmp_path, expected):
    secret = stores.secret(tmp_path)
    with stores.redis() as directory, contextlib.ExitStack() as running:
        engines = []
        for name in "ab":
            path = tmp_path / name / "kv.sock"
            others = ["--listen", "127.0.0.1:0", "--directory", directory, "--secret", str(secret)]
            running.enter_context(process(path, "16M", *others))
            hosts = urlencode({"directory": directory, "secret": secret, "replicas": 1})
            engines.append(sharing(f"shm://{path}?{hosts}"))
        first, second = engines
        stores_of = [engine.core.scheduler.kv.tiers.levels[-1].tier._cache for engine in engines]
        until(lambda: len(stores_of[0]._cache._directory.hosts()[0]) == 2)
        assert tokens(run(first, prompts())) == expected
        stores_of[0]._cache.flush()
        second.core.scheduler.kv.tiers.seeker._patience = 60
        assert stores_of[1].stat()["entries"] == 0
        outputs = run(second, prompts())
        assert tokens(outputs) == expected
        assert from_shared(outputs) == sum((len(p) - 1) // 16 * 16 for p in prompts())
        assert stores_of[1].stat()["remote_hits"] > 0
        for engine in engines:
            engine.core.shutdown()


def test_a_host_without_its_secret_says_so():
    with pytest.raises(OSError, match=r"secret: No such file.*/no/such/file"):
        sharing(HOSTS)


def test_ranks_keep_their_shards_apart(url):
    """The fingerprint that a tier is given names the rank, so that is all that has to be set."""
    spec = KVSpec(1, 2, 8, 16, "float32")
    blob = bytearray(b"x" * spec.block_bytes)
    key = Key(bytes(range(32)))
    ranks = [{}, {"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2}]
    tiers = [
        SharedTier(url, spec.block_bytes, fingerprint(spec, b"w", **rank), 1 << 20)
        for rank in ranks
    ]
    tiers[1].write(key, memoryview(blob))
    assert [tier.contains([key]) for tier in tiers] == [[False], [True], [False]]
    assert [tier.read(key, memoryview(bytearray(blob))) for tier in tiers] == [False, True, False]
    for tier in tiers:
        tier.close()


def test_a_server_that_goes(expected):
    with stores.redis() as url:
        engine = sharing(url)
        assert tokens(run(engine, prompts())) == expected
        second = sharing(url)
    assert tokens(run(second, prompts())) == expected


def test_other_models_see_nothing(tmp_path):
    run(sharing(f"file://{tmp_path}/kv"), prompts())
    for other in ({"block_size": 32}, {"dtype": "bfloat16"}):
        outputs = run(sharing(f"file://{tmp_path}/kv", **other), prompts())
        assert from_shared(outputs) == 0


def test_salts_keep_tenants_apart(tmp_path):
    def served(engine, salt):
        prompt = {"prompt_token_ids": [5] * 40, "cache_salt": salt}
        engine.add_request("a", prompt, SamplingParams(max_tokens=1))
        outputs = []
        while engine.has_unfinished_requests():
            outputs += [o for o in engine.step() if o.finished]
        while engine.core.tidy():
            engine.core.scheduler.kv.wait(0.01)
        return outputs

    url = f"file://{tmp_path}/kv"
    served(sharing(url), "a")
    assert from_shared(served(sharing(url), "b")) == 0
    assert from_shared(served(sharing(url), "a")) == 32


def test_reset_forgets_what_this_engine_knows_and_no_more(tmp_path):
    engine = sharing(f"file://{tmp_path}/kv")
    run(engine, prompts())
    count = len(files(tmp_path / "kv"))
    assert engine.core.reset_prefix_cache()
    assert len(files(tmp_path / "kv")) == count > 0
    assert from_shared(run(engine, prompts())) > 0


def test_the_quota_is_kept_by_two_engines(tmp_path, expected):
    size = 40_000
    options = {"shared_cache_size": size}
    for _ in range(2):
        engine = sharing(f"file://{tmp_path}/kv", **options)
        assert tokens(run(engine, prompts())) == expected
        assert sum(path.stat().st_size for path in files(tmp_path / "kv")) <= size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shared_cache": "file://host/dir"}, "three slashes"),
        ({"shared_cache": "file:///"}, "three slashes"),
        ({"shared_cache": "file:///a?b=c"}, "three slashes"),
        ({"shared_cache": "shm:///a?replica=2"}, "'replica' behind shm"),
        ({"shared_cache": "shm:///a?replicas=2"}, "needs directory and secret"),
        ({"shared_cache": "shm:///a?replicas=2&replicas=3"}, "'replicas' .* twice"),
        ({"shared_cache": f"{HOSTS}&replicas=two"}, "replicas is a number"),
        ({"shared_cache": f"{HOSTS}&replicas=0"}, "replicas must be above 0"),
        ({"shared_cache": f"{HOSTS}&timeout=inf"}, "timeout must be finite"),
        ({"shared_cache": "shm:///a?directory=redis://h&secret="}, "secret is empty"),
        ({"shared_cache": "shm:///a?directory=http://h&secret=/dev/null"}, "secret: /dev/null"),
        ({"shared_cache": "/var/kv"}, "shared_cache"),
        ({"shared_cache": "nonsense://x"}, "shared_cache"),
        ({"shared_cache": "shm:///a", "shared_cache_size": 5}, "shared_cache_size"),
        ({"shared_cache_size": 5}, "shared_cache_size"),
        ({"shared_cache": "file:///tmp/a", "shared_cache_size": 0}, "shared_cache_size"),
        ({"shared_cache": "file:///tmp/a", "enable_prefix_caching": False}, "prefix caching"),
        ({"shared_cache": "file:///tmp/a", "disk_cache_dir": "/tmp/b"}, "disk_cache_dir"),
        ({"shared_cache": "file:///tmp/a", "preemption_mode": "swap"}, "host tier"),
    ],
)
def test_errors_name_the_flag(options, says):
    with pytest.raises(ValueError, match=says):
        make(**options)


def test_a_folder_that_cannot_be_had(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((OSError, ValueError), match="file"):
        sharing(f"file://{tmp_path}/file/kv")


def test_a_shared_cache_alone_takes_no_host_memory():
    config = EngineArgs(shared_cache="shm:///run/kv.sock").create_engine_config()
    assert isinstance(config.cache.tiers, TierConfig) and config.cache.tiers.host_bytes == 0
