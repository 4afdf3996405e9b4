"""fsspec file systems as this package wants them, and what their answers mean.

A URI and its storage options come in; a file system comes out that caches no listing, tries one
request of S3 at most three times (`pipeline/storage/retry.py` does the rest, under a deadline), and
refuses what `pipeline/storage/addresses.py` refuses. Both the output (`pipeline/storage/store.py`)
and the input (`pipeline/read/input/shards.py`) are read through it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import fsspec

from pipeline.errors import CorpusEmbedError, SpecError, StorageError
from pipeline.storage.addresses import (
    problem_of_options,
    problem_of_place,
    protocol_of,
    shown,
)
from pipeline.storage.options import endpoint_of, problem_of_use
from pipeline.storage.problems import (
    causes,
    is_about_credentials,
    is_bucket_missing,
    problem_of_request,
    reason,
)
from pipeline.storage.retry import count_quick_retries, is_impatient, retried

__all__ = [
    "RANGE_BYTES",
    "endpoint_of",
    "failed",
    "filesystem",
    "options_place",
    "reason",
    "refusal",
]

RANGE_BYTES = 8 << 20
"""The length of one ranged request of a reader that goes from front to back."""

CLOCK_TOLERANCE_S = 240
"""Stores refuse requests signed with a time that is 5 to 15 minutes off. Only the text of an error
depends on this."""


def filesystem(uri: str, options: Mapping[str, Any], section: str | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it.

    section: the section of the spec that the options come from, for messages. Raises SpecError for
    a URI or options that `pipeline/storage/addresses.py` or `pipeline/storage/options.py` refuses,
    and for a protocol that cannot be used; StorageError when it connects and keeps failing.
    """
    place = options_place(section)
    if problem := problem_of_place(uri) or problem_of_options(options):
        raise SpecError(f"{shown(uri)}: {problem}.")
    protocol = protocol_of(uri)
    fixed: dict[str, Any] = {"use_listings_cache": False} if protocol != "file" else {}
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise SpecError(f"{shown(uri)}: protocol '{protocol}' cannot be used: {error}") from error
    if problem := problem_of_use(protocol, kind, options, place):
        raise SpecError(problem)
    if protocol == "s3":
        count_quick_retries()
        options = {**options, "config_kwargs": {**_config(), **options.get("config_kwargs", {})}}
        # one request reads a whole object: S3 sends a checksum with that, and none with a range
        fixed |= {"default_block_size": RANGE_BYTES, "max_concurrency": 1}
    elif protocol in ("http", "https"):
        # aiohttp's own is five minutes for everything, and none for a server that does not answer
        fixed["client_kwargs"] = {"timeout": _http_timeout(), **options.get("client_kwargs", {})}
        options = {name: value for name, value in options.items() if name != "client_kwargs"}
    else:
        # the host of hdfs:// or ftp://, which is an option for fsspec
        fixed |= kind._get_kwargs_from_urls(uri)
    try:
        # some connect when they are made
        fs = retried(
            lambda: fsspec.filesystem(protocol, **{**fixed, **options}),
            f"connect to {shown(uri)}",
            endpoint_of(uri, options, place),
        )
    except CorpusEmbedError:
        raise
    except Exception as error:  # each has its own reasons
        raise SpecError(
            f"{shown(uri)}: protocol '{protocol}' cannot be used with {place}: {reason(error)}."
        ) from error
    if protocol == "s3":
        # s3fs would try each of these 5 times more, uncounted: a store that hangs would take 15
        # timeouts
        fs.retries = 1
    path = str(fs._strip_protocol(uri))
    return fs, os.path.abspath(path) if protocol == "file" else path


def failed(
    error: Exception, action: str, uri: str, options: Mapping[str, Any], section: str | None = None
) -> StorageError:
    """What a request to a store that cannot succeed ended with, as an error of ours. It is for
    errors of file systems only: a client library has many reasons for a ValueError."""
    place = options_place(section)
    endpoint = endpoint_of(uri, options, place)
    if is_bucket_missing(error):
        bucket = uri.partition("://")[2].partition("/")[0]
        return StorageError(
            f"{shown(uri)}: the bucket '{bucket}' does not exist on {endpoint}. Create it, or "
            f"correct {section or 'the URI'}{'.uri' if section else ''}."
        )
    again = "then run the same command again"
    if isinstance(error, PermissionError) or is_about_credentials(error):
        advice = refusal(error) if endpoint else "Check the owner and the mode of its folder"
        problem = f"access was refused. {advice}, {again} ({reason(error)})"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f"no room. Make room, {again} ({reason(error)})"
    elif isinstance(error, IsADirectoryError | NotADirectoryError):
        problem = "a file and a folder are in each other's place. Remove what is there"
    elif isinstance(error, OSError):
        problem = f"{problem_of_request(error, endpoint)}. Check {shown(uri)}"
    else:
        problem = f"{reason(error)}. Check {place}"
    return StorageError(f"{action}: {problem}.")


def options_place(section: str | None) -> str:
    """What messages call the storage options of a section of the spec."""
    return f"{section}.storage_options" if section else "storage_options"


def _config() -> dict[str, Any]:
    """Of botocore. It tries one request (a page of a listing) again; whatever takes longer is
    `retried`, which has a deadline. A person waits for less."""
    if is_impatient():
        return {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 1}}
    return {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 3}}


def _http_timeout() -> Any:
    import aiohttp  # fsspec's file system imports it

    config = _config()
    return aiohttp.ClientTimeout(
        total=None, sock_connect=config["connect_timeout"], sock_read=config["read_timeout"]
    )


def refusal(error: BaseException) -> str:
    """What to do about a PermissionError. S3 also refuses requests that were signed with a wrong
    time of day."""
    for link in causes(error):
        answer = getattr(link, "response", None) or {}
        date = parsedate_tz(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
        if date and abs(off_s := time.time() - mktime_tz(date)) > CLOCK_TOLERANCE_S:
            return f"The clock of this machine is {off_s:+.0f} s off the store's clock: correct it"
    return "Check the credentials and their permissions"
