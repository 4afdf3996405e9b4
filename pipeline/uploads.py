"""Multipart uploads on S3 that a killed writer left behind: finding and aborting them, for `vacuum`.

No reader ever sees them, but the store keeps (and bills) their bytes. Cost: one listing request per 1,000 uploads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.addresses import shown
from pipeline.retry import retried
from pipeline.storage import Store


def stale(store: Store, limit: float) -> Iterator[tuple[str, str]]:
    """(key, id) of multipart uploads under the root of an S3 store that were begun before `limit`."""
    if "s3" not in store.fs.protocol:
        return
    bucket, _, prefix = store.root.partition("/")
    page: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        found = _s3(store, "list_multipart_uploads", **page)
        for upload in found.get("Uploads", ()):
            if upload["Key"].startswith(page["Prefix"]) and upload["Initiated"].timestamp() < limit:
                yield upload["Key"], upload["UploadId"]
        if not found.get("IsTruncated"):
            return
        page |= {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}


def abort(store: Store, key: str, upload: str) -> None:
    """Give up one upload; its parts are deleted by the store."""
    _s3(store, "abort_multipart_upload", Bucket=store.root.partition("/")[0], Key=key, UploadId=upload)


def _s3(store: Store, method: str, **arguments: Any) -> dict[str, Any]:
    answer: dict[str, Any] = retried(lambda: store.fs.call_s3(method, **arguments), f"{method} {shown(store.uri)}")
    return answer
