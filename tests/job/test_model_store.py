"""A model on an object store arrives whole, whatever the network does, or the failure is named.

Oracle: the hashes of the directory that was uploaded, and the rule's own count of faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.job.model_store import resolve
from pipeline.storage import retry
from tests.conftest import S3Place
from tests.support.fault_proxy import FaultProxy, Rule

pytestmark = [pytest.mark.faults, pytest.mark.s3]

WEIGHTS = r"m/model\.safetensors"


@pytest.fixture
def options(
    s3: S3Place,
    proxy: FaultProxy,
    bert_mean_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Storage options for `<s3.uri>/m`, a model behind the proxy."""
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    s3.filesystem.put(f"{bert_mean_dir}/", f"{s3.key}/m/", recursive=True)
    return {"endpoint_url": proxy.endpoint_url}


@pytest.mark.parametrize(
    ("mode", "path", "count"),
    [
        ("status", "list-type=2", 7),  # botocore itself tries a refused request three times
        ("status", WEIGHTS, 7),
        ("trunc_rst", WEIGHTS, 2),
        ("trunc_fin", WEIGHTS, 2),
    ],
    ids=["listing refused", "weights refused", "weights reset", "weights cut"],
)
def test_a_store_that_fails_while_a_model_is_fetched_is_waited_out(
    s3: S3Place,
    proxy: FaultProxy,
    bert_mean_dir: Path,
    options: dict[str, Any],
    mode: Any,
    path: str,
    count: int,
) -> None:
    rule = proxy.add(Rule(mode, method="GET", path=path, count=count))
    model = resolve(f"{s3.uri}/m", storage_options=options)
    assert rule.fired == count
    assert model.files == resolve(str(bert_mean_dir)).files


def test_a_store_that_keeps_failing_is_named_with_the_file(
    s3: S3Place,
    proxy: FaultProxy,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A failed store is no mistake in the spec: a scheduler must try again."""
    monkeypatch.setattr(retry, "RETRY_SECONDS", 1.0)
    proxy.add(Rule("trunc_rst", method="GET", path=WEIGHTS))
    with pytest.raises(StorageError, match=r"read s3://.*m/model\.safetensors: still failing"):
        resolve(f"{s3.uri}/m", storage_options=options)
    assert list((tmp_path / "cache/models").iterdir()) == []
