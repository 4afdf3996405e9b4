"""No credential leaves the environment: not into output, logs, messages or arguments of processes.
The cluster of a run asks for a token.

Oracle: the keys that the S3 server accepts, and canaries, looked for byte by byte, also inside
decoded Parquet columns.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusEmbedError
from pipeline.output.snapshots import load_snapshot
from pipeline.read.input.shards import list_shards
from pipeline.storage.store import Store
from pipeline.tools.verify.verification import verify
from tests.support.outputs import DOCUMENTS, make_spec, run_without_ray, write_shard

CANARY = "canary-5f1d0c"


def hits_in(folder: Path, secrets: list[str]) -> list[str]:
    """The places of a secret: in a name, in the bytes of a file, or in a value of a Parquet file,
    footers included."""
    hits = []
    for path in folder.rglob("*"):
        content = os.fsencode(path.name)
        if path.is_file() and not path.is_symlink():
            content += path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path, partitioning=None)
                content += repr(
                    (table.schema.metadata, pq.read_metadata(path).metadata, table.to_pydict())
                ).encode()
        hits += [f"{path}: {secret[:6]}…" for secret in secrets if secret.encode() in content]
    return hits


def test_the_search_itself_finds_a_secret_in_a_compressed_column(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [CANARY] * 100}), tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "log").write_text(f"x{CANARY}y")
    assert len(hits_in(tmp_path, [CANARY])) == 2


@pytest.fixture
def s3_input(s3: Any) -> Any:
    for n in range(2):
        with tempfile.TemporaryDirectory() as folder:
            path = write_shard(
                Path(folder) / f"{n}.jsonl",
                [*DOCUMENTS[n::2], {"id": f"bad{n}", "text": None, "lang": "en"}],
            )
            s3.filesystem.put_file(str(path), f"{s3.key}/in/{n}.jsonl")
    return s3


@pytest.mark.s3
def test_an_output_holds_no_credential_of_its_input_and_no_error_names_one(
    s3_input: Any, tmp_path: Path, bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = s3_input
    secrets = [s3.server.secret_key, s3.server.access_key, CANARY]
    for name in ("HF_TOKEN", "AZURE_STORAGE_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, CANARY)
    spec = make_spec(
        f"{s3.uri}/in",
        str(tmp_path / "out"),
        bert_mean_dir,
        input={"storage_options": s3.storage_options},
    )
    assert run_without_ray(spec)
    assert verify(spec.output.uri, sample=0).ok
    assert hits_in(tmp_path, secrets) == []
    # an empty prefix, then access refused for a wrong secret, then no server
    monkeypatch.setattr("pipeline.storage.retry.RETRY_SECONDS", 0.5)
    no_server = {
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }
    texts = [error_of(lambda: list_shards([f"{s3.uri}/missing/*.jsonl"], s3.storage_options))]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    for options in (s3.storage_options, no_server):
        fresh = {**options, "skip_instance_cache": True}
        texts.append(error_of(lambda fresh=fresh: list_shards([f"{s3.uri}/in"], fresh)))
        texts.append(
            error_of(lambda fresh=fresh: Store(f"{s3.uri}/out", fresh).check_conditional_put())
        )
    assert len(set(texts)) == 5
    assert not [text for text in texts if any(secret in text for secret in secrets)]


def error_of(use: Any) -> str:
    """All that a traceback of it would show."""
    with pytest.raises(CorpusEmbedError) as caught:
        use()
    texts, link = [], caught.value
    while link is not None:
        texts.append(f"{link!r} {link}")
        link = link.__cause__
    return "\n".join(texts)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home without a Ray token, with a short name: Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="ce-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "CORPUS_EMBED_"))
    }
    return {
        **kept,
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
        "CORPUS_EMBED_LOG_DIR": str(home / "logs"),
        **more,
    }


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.s3
def test_a_run_of_the_command_line_shows_no_credential(
    s3_input: Any, home: Path, bert_mean_dir: Path
) -> None:
    """S3 to S3: messages, Ray's session and logs, the whole output, and what `ps` shows while it
    runs."""
    s3 = s3_input
    options = s3.storage_options
    spec = make_spec(
        f"{s3.uri}/in",
        f"{s3.uri}/out",
        bert_mean_dir,
        input={"storage_options": options},
        output={"storage_options": options},
    )
    (home / "job.yaml").write_text(spec.to_yaml())
    secrets = [s3.server.secret_key, CANARY]
    arguments = set()
    with (home / "messages").open("wb") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(home / "job.yaml")],
            env=environment(home, HF_TOKEN=CANARY),
            stdout=messages,
            stderr=messages,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                for entry in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        arguments.add(entry.read_bytes())
                    except OSError:
                        continue
                time.sleep(0.3)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (home / "messages").read_text()
    token = (home / ".ray/auth_token").read_text().strip()
    ours = [words for words in arguments if os.fsencode(home) in words]
    assert any(b"raylet" in words for words in ours)
    assert not [
        words
        for words in arguments
        if any(secret.encode() in words for secret in [*secrets, token])
    ]
    dashboards = [words for words in ours if b"dashboard/dashboard.py" in words]
    # what Ray 2.60 starts without a dashboard: one module that reports usage, no HTTP server, hence
    # no job API
    flags = {b"--host=127.0.0.1", b"--modules-to-load=UsageStatsHead", b"--disable-frontend"}
    assert all(flags <= set(words.split(b"\0")) for words in dashboards)
    s3.filesystem.get(f"{s3.key}/out", str(home / "out"), recursive=True)
    assert load_snapshot(Store(f"{s3.uri}/out", options))
    (home / ".ray/auth_token").unlink()
    assert hits_in(home, [*secrets, token]) == []


@pytest.mark.slow
@pytest.mark.ray
def test_the_local_cluster_of_a_run_refuses_a_client_without_a_token(home: Path) -> None:
    """Ray 2.60 turns tokens on for a cluster that ray.init starts, unless they are turned off,
    which `connect` does not do."""
    code = (
        "import sys, ray; from pipeline.driver.cluster.connection import connect\n"
        "connect(None); print(ray.get_runtime_context().gcs_address, flush=True); sys.stdin.read()"
    )
    join = (
        "import sys, ray; ray.init(address=sys.argv[1], configure_logging=False); print('JOINED')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdin and driver.stdout
        address = driver.stdout.readline().strip()
        assert address
        joined = {}
        for mode in ("disabled", "token"):
            guest = environment(home, RAY_AUTH_MODE=mode, RAY_gcs_rpc_server_connect_timeout_s="5")
            done = subprocess.run(
                [sys.executable, "-c", join, address],
                env=guest,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            joined[mode] = "JOINED" in done.stdout
        driver.stdin.close()
        driver.wait(timeout=60)
    assert joined == {"disabled": False, "token": True}
