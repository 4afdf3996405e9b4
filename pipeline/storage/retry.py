"""The one retry rule for every request to a store: what is worth another try, for how long, and who
is told.

Transient failures back off with full jitter until a deadline, everything else fails at once.
Measured facts behind it are in docs/design.md.
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
"""How long one request is tried again before it counts as failed; an outage longer than this fails
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
    """An error and what it was raised from: s3fs turns answers of S3 into OSErrors."""
    while error is not None:
        yield error
        error = error.__cause__


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help."""
    for link in causes(error):
        response = getattr(link, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(response.get("Error", {}).get("Code", ""))
            return (
                status in (408, 409, 429)
                or status >= 500
                or code in ("SlowDown", "RequestTimeout", "Throttling")
            )
        if (
            isinstance(link, ConnectionError | TimeoutError)
            or type(link).__name__ in _TRANSIENT_NAMES
        ):
            return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


NOTE_SECONDS = 60.0
"""A request that has failed for this long is named to whoever waits for it."""

_on_retry: Callable[[str | None], None] = lambda note: None  # noqa: E731 - a name that `tell_retries` binds anew


def tell_retries(to: Callable[[str | None], None]) -> None:
    """Call `to` at each retry of this process: with None, or with a line for people from
    NOTE_SECONDS on."""
    global _on_retry
    _on_retry = to


@functools.cache
def count_quick_retries() -> None:
    """Have the tries counted that botocore makes by itself of one request, by every S3 client that
    is made from now on."""
    import botocore  # s3fs imports it

    def count(**answer: Any) -> None:
        if answer["attempts"] > 1:
            _on_retry(None)

    # an event after each answer, for whoever has an opinion on trying again
    botocore.register_initializer(lambda session: session.register("needs-retry.s3", count))


def _tell(what: str, noted: list[str], state: tenacity.RetryCallState) -> None:
    waited_s, error = (
        state.seconds_since_start or 0.0,
        state.outcome.exception() if state.outcome else None,
    )
    if waited_s < NOTE_SECONDS or noted:
        return _on_retry(None)
    # the names of the error and its cause, not their texts: that of an HTTP client holds a signed
    # URL with its signature
    names = [type(link).__name__ for link in (error, error and error.__cause__) if link]
    noted.append(
        f"{what}: failing for {waited_s:.0f} s ({', '.join(names)}); it is tried for {RETRY_SECONDS:.0f} s"
    )
    return _on_retry(noted[0])


def retried(request: Callable[[], T], what: str) -> T:
    """Run `request`, again after transient failures. Raises StorageError when the deadline passes."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=20),
        stop=tenacity.stop_after_delay(RETRY_SECONDS),
        before_sleep=functools.partial(_tell, what, []),
    )
    try:
        return retrying(request)
    except tenacity.RetryError as error:
        last = error.last_attempt
        raise StorageError(
            f"{what}: still failing after {last.attempt_number} attempts over {RETRY_SECONDS:.0f} s; the last "
            f"answer was {last.exception()!r}. Check the store, then run the same command again: it resumes."
        ) from last.exception()
