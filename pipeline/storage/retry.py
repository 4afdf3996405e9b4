"""The one rule for trying a request to a store again: after which failures, and for how long.

Transient failures back off with full jitter until a deadline; everything else fails at once. What a
request waits for is named meanwhile (`pipeline/storage/waits.py`). A run has the patience to
outlast an outage; a person at a prompt has not (`patience`). The measurements behind it are in
docs/design.md.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity

from pipeline.errors import CorpusEmbedError, SpecError, StorageError
from pipeline.storage.problems import (
    answer_of,
    causes,
    is_about_credentials,
    problem_of_request,
    status_of,
)
from pipeline.storage.waits import waiting

T = TypeVar("T")


MOST_SECONDS = 31 * 86400.0
"""The longest patience that can be set."""
RETRY_SECONDS: float | None = None
"""The time for which one request of a run is tried again before it counts as failed; None: what
CORPUS_EMBED_RETRY_SECONDS says, 300 by default. A longer outage fails the run."""

PROMPT_SECONDS = 20.0
"""The same for a command that a person waits for."""

_most_s: float | None = None

_TRANSIENT_ERRNO = {
    errno.EBUSY,
    errno.EIO,
    errno.EREMOTEIO,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EPIPE,
}
_TRANSIENT_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionClosedError",
    "ConnectionError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "FlexibleChecksumError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "NetworkError",
    "ReadTimeoutError",
    "RemoteProtocolError",
    "ResponseParserError",
    "ResponseStreamingError",
    "TimeoutException",
}
"""Classes of aiohttp, botocore, httpx and http.client, and what is derived from them."""
_FINAL_NAMES = {
    "ClientConnectorCertificateError",
    "ClientConnectorSSLError",
    "OfflineModeIsEnabled",
    "SSLCertVerificationError",
    "SSLError",
}
"""Derived from these, but final: certificates, and HF_HUB_OFFLINE."""


@functools.cache
def _seconds_of_setting(text: str) -> float:
    """CORPUS_EMBED_RETRY_SECONDS. Raises SpecError when it is no number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_SECONDS:
        raise SpecError(
            f"CORPUS_EMBED_RETRY_SECONDS={text}: this is no number of seconds from 0 to "
            f"{MOST_SECONDS:.0f}. Write 300 for five minutes, or unset it."
        )
    return seconds


def patience_s() -> float:
    """For how many seconds a request of this process is tried again now. Raises SpecError when
    CORPUS_EMBED_RETRY_SECONDS is no number of seconds."""
    setting_s = RETRY_SECONDS
    if setting_s is None:
        setting_s = _seconds_of_setting(os.environ.get("CORPUS_EMBED_RETRY_SECONDS", "300"))
    return setting_s if _most_s is None else min(_most_s, setting_s)


def is_impatient() -> bool:
    """Whether a person waits for this process."""
    return _most_s is not None


@contextlib.contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """While the block runs, requests of this process are tried again for at most so many seconds;
    None: for as long as CORPUS_EMBED_RETRY_SECONDS says."""
    global _most_s
    before = _most_s
    _most_s = seconds
    try:
        yield
    finally:
        _most_s = before


def is_transient(error: BaseException) -> bool:
    """Whether the request that failed with `error` can succeed when it is tried again."""
    links = list(causes(error))
    if any(type(link).__name__ in _FINAL_NAMES for link in links):
        return False
    if (status := status_of(error)) is not None:
        facts = (answer_of(error) or {}).get("Error")
        code = str(facts.get("Code", "")) if isinstance(facts, dict) else ""
        is_throttled = code in ("SlowDown", "RequestTimeout", "Throttling")
        return is_throttled or status in (408, 409, 429) or status >= 500
    for link in links:
        names = {kind.__name__ for kind in type(link).__mro__}
        if isinstance(link, ConnectionError | TimeoutError) or names & _TRANSIENT_NAMES:
            return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def _ignore() -> None:
    """The listener of a process that has set no other."""


_on_retry: Callable[[], object] = _ignore


def listen_to_retries(listener: Callable[[], object]) -> None:
    """Call `listener` at each retry of this process, to count them."""
    global _on_retry
    _on_retry = listener


@functools.cache
def count_quick_retries() -> None:
    """Report also the retries that botocore makes by itself, in every S3 client created from now
    on."""
    import botocore  # s3fs imports it

    def count(**answer: Any) -> None:
        if answer["attempts"] > 1:
            _on_retry()

    # botocore emits this event after each answer, to ask whether it is worth another try
    botocore.register_initializer(lambda session: session.register("needs-retry.s3", count))


def retried(request: Callable[[], T], action: str, endpoint: str = "") -> T:
    """The result of `request`, which is called again after transient failures.

    action: what messages call it: "read s3://…". endpoint: the server that it goes to, and where
    its name comes from. Raises StorageError when the deadline passes and for errors of a client
    library's own classes; OSError, ValueError, a refusal by the server, missing credentials
    and all others as they are.
    """
    limit_s = patience_s()
    with waiting(action, endpoint, limit_s) as wait:

        def keep(state: tenacity.RetryCallState) -> None:
            wait.error = state.outcome.exception() if state.outcome else None
            _on_retry()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=min(20.0, limit_s / 8)),
            stop=tenacity.stop_before_delay(limit_s),
            before_sleep=keep,
        )
        try:
            return retrying(request)
        except tenacity.RetryError as error:
            last = error.last_attempt
            failure = last.exception()
            problem = problem_of_request(failure, endpoint) if failure else ""
            raise StorageError(
                f"{action}: still failing after {last.attempt_number} attempts over "
                f"{limit_s:.0f} s: {problem}. Check the store and its address, then run the same "
                f"command again{'' if is_impatient() else ': it resumes'}."
            ) from failure
        except Exception as error:
            if _is_of_a_client(error):
                problem = problem_of_request(error, endpoint)
                raise StorageError(f"{action}: {problem}.") from error
            raise


def _is_of_a_client(error: Exception) -> bool:
    """Whether it is an error of a class that only a client library has: never one of Python's own,
    which can be a mistake of this program."""
    package = type(error).__module__.partition(".")[0]
    is_ours = isinstance(error, CorpusEmbedError | OSError | ValueError)
    # callers know what was asked for, and with whose credentials
    is_answer = is_ours or is_about_credentials(error) or status_of(error) is not None
    return package not in ("builtins", "pipeline", "pyarrow") and not is_answer
