"""The one rule for trying a request to a store again: after which failures, for how long, and where
it is reported.

Transient failures back off with full jitter until a deadline; everything else fails at once. The
measurements behind it are in docs/design.md.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import tenacity

from pipeline.errors import StorageError

T = TypeVar("T")

RETRY_SECONDS = float(os.environ.get("CORPUS_EMBED_RETRY_SECONDS", "300"))
"""The time for which one request is tried again before it counts as failed. A longer outage fails
the run."""

_TRANSIENT_ERRNO = {
    errno.EBUSY,
    errno.EIO,
    errno.EREMOTEIO,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EPIPE,
}
_TRANSIENT_NAMES = {
    "ClientError",
    "ClientOSError",
    "ClientPayloadError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "FlexibleChecksumError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ReadTimeoutError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, …: s3fs turns answers of S3 into OSErrors."""
    while error is not None:
        yield error
        error = error.__cause__


def is_transient(error: BaseException) -> bool:
    """Whether the request that failed with `error` can succeed when it is tried again."""
    if any(type(link).__name__ == "OfflineModeIsEnabled" for link in causes(error)):
        return False  # a ConnectionError of the Hub's client, by HF_HUB_OFFLINE
    for link in causes(error):
        response = getattr(link, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(response.get("Error", {}).get("Code", ""))
            is_throttled = code in ("SlowDown", "RequestTimeout", "Throttling")
            return is_throttled or status in (408, 409, 429) or status >= 500
        is_connection = isinstance(link, ConnectionError | TimeoutError)
        if is_connection or type(link).__name__ in _TRANSIENT_NAMES:
            return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


NOTE_SECONDS = 60.0
"""A request that has failed for this long is reported by its name."""


def _ignore(note: str | None) -> None:
    """The listener of a process that has set no other."""


_on_retry: Callable[[str | None], None] = _ignore


def listen_to_retries(listener: Callable[[str | None], None]) -> None:
    """Call `listener` at each retry of this process: with None, or, once a request has failed for
    NOTE_SECONDS, with a line of text that names it."""
    global _on_retry
    _on_retry = listener


@functools.cache
def count_quick_retries() -> None:
    """Report also the retries that botocore makes by itself, in every S3 client created from now
    on."""
    import botocore  # s3fs imports it

    def count(**answer: Any) -> None:
        if answer["attempts"] > 1:
            _on_retry(None)

    # botocore emits this event after each answer, to ask whether it is worth another try
    botocore.register_initializer(lambda session: session.register("needs-retry.s3", count))


def _report(action: str, notes: list[str], state: tenacity.RetryCallState) -> None:
    """Report one retry; `notes` holds the line about this request once it has been reported."""
    waited_s = state.seconds_since_start or 0.0
    if waited_s < NOTE_SECONDS or notes:
        return _on_retry(None)
    error = state.outcome.exception() if state.outcome else None
    # the class names of the error and its cause, not their texts: that of an HTTP client holds a
    # signed URL with its signature
    names = [type(link).__name__ for link in (error, error and error.__cause__) if link]
    notes.append(
        f"{action}: failing for {waited_s:.0f} s ({', '.join(names)}); "
        f"it is tried for {RETRY_SECONDS:.0f} s"
    )
    return _on_retry(notes[0])


def retried(request: Callable[[], T], action: str) -> T:
    """The result of `request`, which is called again after transient failures. `action` is what
    messages call it: "read s3://…". Raises StorageError when the deadline passes, any other failure
    as it is."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=20),
        stop=tenacity.stop_after_delay(RETRY_SECONDS),
        before_sleep=functools.partial(_report, action, []),
    )
    try:
        return retrying(request)
    except tenacity.RetryError as error:
        last = error.last_attempt
        raise StorageError(
            f"{action}: still failing after {last.attempt_number} attempts over "
            f"{RETRY_SECONDS:.0f} s; the last answer was {last.exception()!r}. Check the store, "
            "then run the same command again: it resumes."
        ) from last.exception()
