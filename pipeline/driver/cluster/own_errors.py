"""What an error of a Ray cluster is in truth: an exception of Ray comes in, the one that a worker
raised comes out."""

from __future__ import annotations

import ray

import pipeline.errors as errors
from pipeline.driver.cluster.connection import log_path
from pipeline.errors import CorpusEmbedError, WorkerError


def own_error(error: BaseException) -> BaseException:
    """The exception that Ray wrapped, with the class and the text that it was raised with: one of
    this package's own where there is one, because that is what a person has to read. What is Ray's
    alone becomes a WorkerError."""
    link: BaseException | None = error
    first: BaseException | None = None
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        # Ray's RayTaskError(InputError) is an InputError too, with a trace for its text
        if not isinstance(link, ray.exceptions.RayError):
            first = first or link
            if isinstance(link, CorpusEmbedError):
                return link
        # of an error in a constructor, Ray keeps the text alone
        if isinstance(link, ray.exceptions.ActorDiedError):
            name, _, message = str(link).rpartition("\npipeline.errors.")[2].partition(": ")
            if name in errors.__all__:
                own = CorpusEmbedError.__new__(getattr(errors, name))
                own.args = (message.strip(),)
                return own
        link = getattr(link, "cause", None) or link.__cause__
    if first is None and isinstance(error, ray.exceptions.RayError):
        words = next(filter(None, map(str.strip, str(error).splitlines())), "no message")
        return WorkerError(
            f"Ray ended the run: {type(error).__name__}: {words} Run the same command again; if "
            f"that fails too, see {log_path()} and Ray's logs on the nodes."
        )
    return first or error
