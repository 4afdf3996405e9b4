"""The fault proxy does to real, signed S3 traffic exactly what a rule says, and nothing without
one."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    FlexibleChecksumError,
    HTTPClientError,
    ResponseStreamingError,
)

from tests.conftest import BUCKET, S3Place
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.s3_server import S3Server

BODY = bytes(range(256)) * 4_000


@pytest.fixture
def client(s3_session: S3Server, proxy: FaultProxy) -> Any:
    return s3_session.client(proxy.endpoint_url)


@pytest.fixture
def key(s3: S3Place) -> str:
    s3.filesystem.pipe_file(f"{s3.key}/object", BODY)
    return f"{s3.key}/object".removeprefix(f"{BUCKET}/")


def get(client: Any, key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def test_signed_requests_pass_unchanged_and_are_logged(
    client: Any, proxy: FaultProxy, key: str
) -> None:
    client.put_object(Bucket=BUCKET, Key=key, Body=BODY[::-1])
    assert get(client, key) == BODY[::-1]
    assert client.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == len(BODY)
    assert [(seen.method, seen.status, seen.fault) for seen in proxy.log] == [
        ("PUT", 200, None),
        ("GET", 200, None),
        ("HEAD", 200, None),
    ]


def test_s3fs_lists_writes_conditionally_and_reads_ranges_through_it(
    s3: S3Place, proxy: FaultProxy, key: str
) -> None:
    filesystem = s3.server.filesystem(proxy.endpoint_url)
    assert filesystem.ls(s3.key) == [f"{s3.key}/object"]
    assert filesystem.cat_file(f"{BUCKET}/{key}", start=1_000, end=1_500) == BODY[1_000:1_500]
    filesystem.pipe_file(f"{s3.key}/new", b"1", mode="create")
    with pytest.raises(OSError, match="pre-conditions"):
        filesystem.pipe_file(f"{s3.key}/new", b"2", mode="create")
    big = BODY * 8
    with filesystem.open(f"{s3.key}/multipart", "wb", block_size=5 * 2**20) as out:
        out.write(big)
    assert filesystem.cat_file(f"{s3.key}/multipart") == big


def test_wrong_keys_are_refused_through_it(
    s3_session: S3Server, proxy: FaultProxy, key: str
) -> None:
    stranger = dataclasses.replace(s3_session, secret_key="0" * 40)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        get(stranger.client(proxy.endpoint_url), key)


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey"), (500, "InternalError")]
)
def test_status_fires_as_often_as_asked(
    client: Any, proxy: FaultProxy, key: str, status: int, code: str
) -> None:
    rule = proxy.add(Rule("status", method="GET", path="object", status=status, count=1))
    with pytest.raises(ClientError, match=code):
        get(client, key)
    assert get(client, key) == BODY
    assert rule.fired == 1
    assert [seen.fault for seen in proxy.log] == ["status", None]


def test_skip_and_other_methods_and_paths_are_left_alone(
    client: Any, proxy: FaultProxy, key: str
) -> None:
    proxy.add(
        Rule("status", method="PUT"), Rule("status", path="elsewhere"), Rule("status", skip=1)
    )
    assert get(client, key) == BODY
    with pytest.raises(ClientError, match="SlowDown"):
        get(client, key)


def test_probability_is_seeded(s3_session: S3Server, key: str) -> None:
    def faults() -> list[str | None]:
        with FaultProxy(s3_session.endpoint_url, seed=7) as proxy:
            proxy.add(Rule("status", probability=0.5))
            client = s3_session.client(proxy.endpoint_url)
            for _ in range(12):
                try:
                    client.head_object(Bucket=BUCKET, Key=key)
                except ClientError:
                    continue
            return [seen.fault for seen in proxy.log]

    first = faults()
    assert first == faults()
    assert set(first) == {None, "status"}


def test_reset_never_reaches_the_server(client: Any, proxy: FaultProxy, key: str) -> None:
    proxy.add(Rule("reset", method="PUT"))
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"never")
    proxy.clear()
    assert get(client, key) == BODY


def test_a_lost_answer_was_applied(client: Any, proxy: FaultProxy, key: str) -> None:
    proxy.add(Rule("lost", method="PUT"))
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"applied")
    assert [(seen.status, seen.fault) for seen in proxy.log] == [(200, "lost")]
    proxy.clear()
    assert get(client, key) == b"applied"


@pytest.mark.parametrize("mode", ["trunc_fin", "trunc_rst"])
def test_a_truncated_body_ends_early(client: Any, proxy: FaultProxy, key: str, mode: Any) -> None:
    proxy.add(Rule(mode, method="GET", keep=0.5))
    with pytest.raises((ResponseStreamingError, HTTPClientError)):
        get(client, key)
    assert [(seen.status, seen.fault) for seen in proxy.log] == [(200, mode)]


def test_flip_changes_one_bit(s3: S3Place, proxy: FaultProxy, key: str) -> None:
    proxy.add(Rule("flip", method="GET", path="object"))
    filesystem = s3.server.filesystem(proxy.endpoint_url)
    # The server sends a checksum with a whole object, and s3fs compares; nothing protects a range.
    with pytest.raises(FlexibleChecksumError):
        filesystem.cat_file(f"{BUCKET}/{key}")
    read = filesystem.cat_file(f"{BUCKET}/{key}", start=0, end=10_000)
    changed = [(a, b) for a, b in zip(read, BODY[:10_000], strict=True) if a != b]
    assert len(changed) == 1
    assert (changed[0][0] ^ changed[0][1]).bit_count() == 1


def test_hang_answers_nothing_for_its_time(client: Any, proxy: FaultProxy, key: str) -> None:
    proxy.add(Rule("hang", count=1, delay_s=0.5))
    started = time.monotonic()
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        get(client, key)
    assert time.monotonic() - started >= 0.5


def test_ok200err_is_an_error_document_under_status_200(
    client: Any, proxy: FaultProxy, key: str
) -> None:
    proxy.add(Rule("ok200err", method="PUT"))
    source = {"Bucket": BUCKET, "Key": key}
    with pytest.raises(ClientError, match="InternalError"):
        client.copy_object(Bucket=BUCKET, Key=f"{key}-copy", CopySource=source)
    proxy.clear()
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=BUCKET, Key=f"{key}-copy")
