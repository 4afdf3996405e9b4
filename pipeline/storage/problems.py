"""What the errors of file systems and their HTTP clients mean, in words.

An exception comes in, of s3fs, botocore, aiohttp, httpx, the Hub's client or the operating system;
part of a sentence comes out, without the queries of URLs, which can hold a signature.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping

__all__ = [
    "answer_of",
    "causes",
    "is_about_credentials",
    "is_bucket_missing",
    "problem_of_request",
    "reason",
    "status_of",
]

LONGEST_REASON = 400
_TIMEOUTS = {
    *("ConnectTimeoutError", "ReadTimeoutError", "FSTimeoutError"),
    *("ConnectTimeout", "ReadTimeout", "PoolTimeout", "WriteTimeout"),
}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, …: s3fs turns answers of S3 into OSErrors."""
    while error is not None:
        yield error
        error = error.__cause__


def _links(error: BaseException) -> Iterator[BaseException]:
    """`causes`, and what HTTP clients keep elsewhere: the error that was handled when another one
    was raised, and the operating system's error within an aiohttp or botocore one."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        link = pending.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        kept = getattr(link, "kwargs", None)
        inner = kept.get("error") if isinstance(kept, Mapping) else None
        pending += [link.__cause__, link.__context__, getattr(link, "os_error", None), inner]


def answer_of(error: BaseException) -> Mapping[str, object] | None:
    """The answer of S3 that an error stands for, as botocore parses it."""
    for link in causes(error):
        answer = getattr(link, "response", None)
        if isinstance(answer, Mapping):
            return answer
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error stands for; None where no answer came."""
    answer = answer_of(error)
    if answer is not None:
        facts = answer.get("ResponseMetadata")
        return int(facts.get("HTTPStatusCode", 0)) if isinstance(facts, Mapping) else 0
    for link in causes(error):
        for holder in (link, getattr(link, "response", None)):
            status = getattr(holder, "status_code", None) or getattr(holder, "status", None)
            if isinstance(status, int):
                return status
    return None


def is_bucket_missing(error: BaseException) -> bool:
    """Whether a store says that the bucket does not exist, and not only an object in it."""
    return _code(error) == "NoSuchBucket"


def is_about_credentials(error: BaseException) -> bool:
    """Whether it is botocore's NoCredentialsError or one like it, which are no PermissionErrors."""
    return "Credential" in type(error).__name__


def problem_of_request(error: BaseException, endpoint: str = "") -> str:
    """What went wrong with a request, as the middle of a sentence. endpoint: the server that it was
    sent to, and where that name comes from."""
    server = endpoint or "the server"
    if (status := status_of(error)) is not None:
        return f"{endpoint or 'the store'} answers {status} {_code(error)}".rstrip()
    links = list(_links(error))
    names = {type(link).__name__ for link in links}
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE forbids requests to the Hub"
    for link in links:
        if isinstance(link, socket.gaierror) or "DNSError" in type(link).__name__:
            return f"cannot reach {server}: this name is not known here"
        if isinstance(link, ssl.SSLError):
            return f"cannot reach {server}: {link.reason or type(link).__name__}"
        if isinstance(link, TimeoutError) or type(link).__name__ in _TIMEOUTS:
            return f"cannot reach {server}: no answer in time"
        if isinstance(link, OSError) and (number := link.errno or 0) in errno.errorcode:
            words = os.strerror(number).lower()
            return f"cannot reach {server}: {words}" if number in _NETWORK else words
    return reason(error)


def reason(error: BaseException) -> str:
    """An error as part of a message: its class and its text on one line, without the query of a
    URL."""
    text = " ".join(str(error).split())[:LONGEST_REASON]
    text = re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?…", text).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_NETWORK = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN),
}


def _code(error: BaseException) -> str:
    facts = (answer_of(error) or {}).get("Error")
    return str(facts.get("Code", "")) if isinstance(facts, Mapping) else ""
