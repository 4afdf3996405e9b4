"""Storage options that a file system cannot use, found before the first request.

The options of a spec or of the command line come in; why one of them is refused comes out, with the
nearest name that exists. s3fs and fsspec's HTTP file system pass on what they do not know, and fail
at the first request with an error of a library four floors below; others ignore it, which a list of
inputs on several stores needs.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.storage.addresses import protocol_of, shown

__all__ = ["S3_OF_AWS", "endpoint_of", "problem_of_use", "server_of"]

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
S3_OF_AWS = "the S3 endpoint of AWS"
"""The server of an S3 URI for which nothing names an endpoint."""
_HOST = re.compile(r"(?:[\w.-]*@)?([\w.-]*(?::\d+)?)")
"""A user and a host that every library understands alike."""


def problem_of_use(protocol: str, kind: type, options: Mapping[str, Any], place: str) -> str | None:
    """Why options of a file system of class `kind` cannot be used; None where they can. place: what
    a message calls the options: "input.storage_options"."""
    if protocol == "s3":
        return _problem_of_s3(kind, options, place)
    if protocol in ("http", "https"):
        import aiohttp  # fsspec's file system imports it

        names = {*_parameters(kind), *_parameters(aiohttp.ClientSession, "_request")}
        return _problem_of_names(options, names, place, protocol)
    return None


def endpoint_of(uri: str, options: Mapping[str, Any], place: str) -> str:
    """The server behind a URI and where its name comes from, as messages put it; "" for a disk."""
    protocol = protocol_of(uri)
    if protocol == "file":
        return ""
    if protocol == "hf":
        return _hub(options)
    if protocol != "s3":
        return f"{protocol}://{shown(uri).partition('://')[2].partition('/')[0]}"
    url, origin = _s3_endpoint(options, place)
    return f"{url} ({origin})" if url else S3_OF_AWS


def server_of(uri: str, options: Mapping[str, Any]) -> str:
    """The server that a URI and its storage options name, in a spelling that can be compared;
    "" for a disk and for the memory of this process.

    Options of other stores than S3 can name a host, too: they have to be compared beside it.
    """
    protocol = protocol_of(uri)
    protocol = {"abfss": "abfs", "az": "abfs"}.get(protocol, protocol)
    if protocol in ("file", "memory"):
        return ""
    if protocol == "s3":
        return str(_s3_endpoint(options, "")[0] or S3_OF_AWS).rstrip("/")
    if protocol == "hf":
        return _hub(options)
    if protocol == "gs":  # which begins with a bucket
        return "gs://"
    authority = uri.partition("://")[2].partition("/")[0]
    if protocol == "abfs" and "@" not in authority:  # a container, without its account
        return "abfs://"
    # In "evil?@good" libraries see either host: what is not plain is compared as it is.
    plain = _HOST.fullmatch(authority)
    return f"{protocol}://{plain[1] if plain else authority}"


def _hub(options: Mapping[str, Any]) -> str:
    return str(options.get("endpoint") or os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def _s3_endpoint(options: Mapping[str, Any], place: str) -> tuple[Any, str]:
    """The URL of the S3 endpoint and the setting that names it; ("", "") for the one of AWS."""
    inner = options.get("client_kwargs")
    nested = inner.get("endpoint_url") if isinstance(inner, Mapping) else None
    for url, origin in (
        (options.get("endpoint_url"), f"{place}.endpoint_url"),
        (nested, f"{place}.client_kwargs.endpoint_url"),
        *((os.environ.get(name), name) for name in _ENDPOINT_VARIABLES),
    ):
        if url:
            return url, origin
    return "", ""


def _problem_of_s3(kind: type, options: Mapping[str, Any], place: str) -> str | None:
    from aiobotocore.session import AioSession  # s3fs imports both
    from botocore.config import Config

    names = {*_parameters(kind), *_parameters(AioSession)}
    if problem := _problem_of_names(options, names, place, "s3"):
        return problem
    inner_names = {
        "client_kwargs": _parameters(AioSession, "_create_client"),
        "config_kwargs": frozenset(Config.OPTION_DEFAULTS),
    }
    endpoints = [(f"{place}.endpoint_url", options.get("endpoint_url"))]
    for name, known in inner_names.items():
        inner = options.get(name) or {}
        if not isinstance(inner, Mapping):
            return f"{place}.{name}: a mapping of options is needed, not {inner!r}."
        if problem := _problem_of_names(inner, known, f"{place}.{name}", "s3"):
            return problem
        endpoints.append((f"{place}.{name}.endpoint_url", inner.get("endpoint_url")))
    endpoints += [(name, os.environ.get(name)) for name in _ENDPOINT_VARIABLES]
    for origin, url in endpoints:
        if url is not None and not re.match(r"https?://[^/]", str(url)):
            return f"{origin}: '{url}' has no protocol. Write http://{url} or https://{url}."
    return None


def _problem_of_names(
    options: Mapping[str, Any], known: Iterable[str], place: str, protocol: str
) -> str | None:
    names = sorted(set(known))
    for name in options:
        if name in names:
            continue
        near = difflib.get_close_matches(str(name), names, 1)
        advice = f"did you mean '{near[0]}'?" if near else "remove it."
        return f"{place}.{name}: unknown option for {protocol}; {advice}"
    return None


@functools.cache
def _parameters(kind: type, method: str = "__init__") -> frozenset[str]:
    """The named parameters of a method, of all classes that a class is made of; and what fsspec
    takes out of the options of every file system."""
    names = {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"}
    for base in kind.__mro__:
        if function := vars(base).get(method):
            names |= {
                parameter.name
                for parameter in inspect.signature(function).parameters.values()
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            }
    return frozenset(names - {"self"})
