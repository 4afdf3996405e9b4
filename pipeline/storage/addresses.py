"""Refuse URIs and storage options that hold a secret or do more than name a place: one rule for
specs, the command line, models and every store.

A spec is stored with the output, printed and sent to workers, and its URIs end up in `source_uri`.
So neither URIs nor options can hold a secret; credentials come from the environment, a profile or a
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
    *("file", "local", "memory", "http", "https", "ftp", "sftp", "ssh", "smb", "webdav"),
    *("s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "oss", "oci", "tos"),
    *("hf", "hdfs", "webhdfs", "lakefs"),
}
"""Protocols whose URL names a place and nothing else. fsspec has others that do more: `reference`
renders Jinja templates from the data; `simplecache`, `filecache`, `blockcache` and `cached` write
where their options say; `zip`, `tar`, `dir`, `generic` and `a::b` chains open a second file system;
`dask` and `jupyter` run elsewhere; `git` and `github` are code hosts."""

_SECRET_NAME = re.compile(
    r"secret|token|credential|signature|authorization|cookie|passw|passphrase|pwd"
    r"|(api|access|account|private|customer|shared)[-_]?key|connection[-_]?string"
    r"|^(key|pass|auth|sig)$",
    re.IGNORECASE,
)
_ADVICE = (
    "A job spec is stored with the output: give credentials through the environment "
    "(AWS_ACCESS_KEY_ID …), a profile or an instance role"
)


def shown(uri: str) -> str:
    """A URI that is safe to print: without user and password, and without the query of a web
    address or a signed URL."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    if scheme in ("http", "https") or _secret_in(uri):
        rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def problem_of(uri: str) -> str | None:
    """Why a URI is refused, in words that do not repeat a secret; None when it is accepted."""
    protocol, mark, _ = uri.partition("://")
    if mark and protocol not in PROTOCOLS:
        accepted = ", ".join(sorted(PROTOCOLS))
        return f"protocol '{protocol}' cannot be used; those that can are {accepted}"
    if secret := _secret_in(uri):
        return f"{shown(uri)} comes with {secret}. {_ADVICE}"
    return None


def problem_of_options(options: Mapping[str, Any]) -> str | None:
    """Why storage options are refused, at any depth; None when they are accepted."""
    if "cache_options" in options:
        return "'cache_options' can name a local file that fsspec writes to; leave it out"
    for name, value in _leaves(options):
        if _SECRET_NAME.search(name):
            return f"'{name}' looks like a secret. {_ADVICE}"
        if isinstance(value, str) and (secret := _secret_in(value)):
            return f"'{name}' comes with {secret}. {_ADVICE}"
    return None


def _secret_in(uri: str) -> str | None:
    protocol, mark, rest = uri.partition("://")
    if not mark:
        return None
    user, at, _ = rest.partition("/")[0].rpartition("@")
    # abfss://container@account and sftp://user@host hold no secret
    if at and (":" in user or protocol in ("http", "https")):
        return "a user or password"
    query = rest.partition("?")[2]
    names = [
        name for name, _ in parse_qsl(query, keep_blank_values=True) if _SECRET_NAME.search(name)
    ]
    return f"a secret in its query ({names[0]})" if names else None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(nearest name, value) of everything in nested options, the mappings themselves included."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((str(key), inner), *_leaves(inner, str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from ((name, inner), *_leaves(inner, name))
