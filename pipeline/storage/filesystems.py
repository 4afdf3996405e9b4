"""fsspec file systems as this package wants them, and what their answers mean.

A URI and its storage options come in; a file system comes out that caches no listing, tries one
request of S3 at most three times (`pipeline/storage/retry.py` does the rest, under a deadline), and
refuses what `pipeline/storage/addresses.py` refuses. Both the output (`pipeline/storage/store.py`)
and the input (`pipeline/read/shards.py`) are read through it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import fsspec

from pipeline.errors import SpecError
from pipeline.storage.addresses import problem_of_options, problem_of_place, shown
from pipeline.storage.retry import causes, count_quick_retries

RANGE_BYTES = 8 << 20
"""The length of one ranged request of a reader that goes from front to back."""

CLOCK_TOLERANCE_S = 240
"""Stores refuse requests signed with a time that is 5 to 15 minutes off. Only the text of an error
depends on this."""


def filesystem(uri: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it.

    Raises SpecError for a URI or options that `pipeline/storage/addresses.py` refuses, and for a
    protocol whose package is not installed.
    """
    if problem := problem_of_place(uri) or problem_of_options(options):
        raise SpecError(f"{shown(uri)}: {problem}.")
    protocol = uri.split("://", 1)[0] if "://" in uri else "file"
    is_s3 = protocol in ("s3", "s3a")
    fixed: dict[str, Any] = {"use_listings_cache": False} if protocol != "file" else {}
    if is_s3:
        count_quick_retries()
        # botocore tries one request (a page of a listing) again; whatever takes longer is
        # `retried`, which has a deadline
        config = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 3}}
        options = {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}
        # one request reads a whole object: S3 sends a checksum with that, and none with a range
        fixed |= {"default_block_size": RANGE_BYTES, "max_concurrency": 1}
    try:
        fs = fsspec.filesystem(protocol, **{**fixed, **options})
    except (ImportError, ValueError, TypeError) as error:
        raise SpecError(f"{shown(uri)}: protocol '{protocol}' cannot be used: {error}") from error
    if is_s3:
        # s3fs would try each of these 5 times more, uncounted: a store that hangs would take 15
        # timeouts
        fs.retries = 1
    path = str(fs._strip_protocol(uri))
    return fs, os.path.abspath(path) if protocol == "file" else path


def refusal(error: BaseException) -> str:
    """What to do about a PermissionError. S3 also refuses requests that were signed with a wrong
    time of day."""
    for link in causes(error):
        answer = getattr(link, "response", None) or {}
        date = parsedate_tz(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
        if date and abs(off_s := time.time() - mktime_tz(date)) > CLOCK_TOLERANCE_S:
            return f"The clock of this machine is {off_s:+.0f} s off the store's clock: correct it"
    return "Check the credentials and their permissions"


def reason(error: BaseException) -> str:
    """An error as part of a message: its class and its text."""
    return f"{type(error).__name__}: {error}"
