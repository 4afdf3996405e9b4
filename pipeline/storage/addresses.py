"""What a URI and storage options may hold: one rule for specs, the command line, models and every
store.

A spec is stored with the output, printed and sent to workers, and its URIs end in `source_uri`. So
neither URIs nor options may hold a secret; credentials come from the environment, a profile or a
role. And a spec only says where bytes are: fsspec protocols that wrap another file system, render
templates, write caches or run on other machines are refused, as is the one option that names a
local file to write to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

PROTOCOLS = {
    "file", "local", "memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "http", "https", "hf", "hdfs",
    "webhdfs", "oss", "oci", "tos", "sftp", "ssh", "ftp", "smb", "webdav", "lakefs",
}  # fmt: skip
"""Stores that one URL names. Left out are those of fsspec that do more than that: `reference`
renders Jinja templates from the data, `simplecache`, `filecache`, `blockcache` and `cached`
write where their options say, `zip`, `tar`, `dir`, `generic` and `a::b` chains open a second
file system, `dask` and `jupyter` run elsewhere, `git` and `github` are code hosts."""

_SECRET_NAME = re.compile(
    r"secret|token|credential|signature|authorization|cookie|passw|passphrase|pwd"
    r"|(api|access|account|private|customer|shared)[-_]?key|connection[-_]?string|^(key|pass|auth|sig)$",
    re.IGNORECASE,
)
_HOW = (
    "give credentials through the environment (AWS_ACCESS_KEY_ID …), a profile or an instance role"
)


def shown(uri: str) -> str:
    """A URI fit for a log line: user and password are left out, and the query of a web address or a
    signed URL."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    if scheme in ("http", "https") or _secret_in(uri):
        rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def problem_of(uri: str) -> str | None:
    """Why a URI is refused, in words that do not repeat a secret; None when it may be used."""
    protocol, mark, _ = uri.partition("://")
    if mark and protocol not in PROTOCOLS:
        return f"protocol '{protocol}' cannot be used; those that can are {', '.join(sorted(PROTOCOLS))}"
    if secret := _secret_in(uri):
        return f"{shown(uri)} comes with {secret}. A job spec is stored with the output: {_HOW}"
    return None


def problem_of_options(options: Mapping[str, Any]) -> str | None:
    """Why storage options are refused, at any depth; None when they may be used."""
    if "cache_options" in options:
        return "'cache_options' can name a local file that fsspec writes to; leave it out"
    for name, value in _leaves(options):
        if _SECRET_NAME.search(name):
            return f"'{name}' looks like a secret. A job spec is stored with the output: {_HOW}"
        if isinstance(value, str) and (secret := _secret_in(value)):
            return f"'{name}' comes with {secret}. A job spec is stored with the output: {_HOW}"
    return None


def _secret_in(uri: str) -> str | None:
    protocol, mark, rest = uri.partition("://")
    if not mark:
        return None
    user, at, _ = rest.partition("/")[0].rpartition("@")
    # abfss://container@account and sftp://user@host are none
    if at and (":" in user or protocol in ("http", "https")):
        return "a user or password"
    query = rest.partition("?")[2]
    names = [
        name for name, _ in parse_qsl(query, keep_blank_values=True) if _SECRET_NAME.search(name)
    ]
    return f"a secret in its query ({names[0]})" if names else None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(nearest name, value) of everything inside nested options, the mappings themselves included."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((str(key), inner), *_leaves(inner, str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from ((name, inner), *_leaves(inner, name))
