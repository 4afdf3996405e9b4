"""What a URI means, in one spelling, and which URIs and storage options are refused because they
hold a secret or do more than name a place: one rule for specs, the command line, models and every
store.

**One name, one thing.** `normalized` gives the one spelling of a place that a person has named, and
`normalized_output` that of the root of an output. A local path is absolute, without `//`, `.` and
`..`, and never a `file:` URI; what a link leads to is not looked up. A key of an object store is no
path: `a//b` and `a/b` are two objects there, so an input keeps its key as it is. An output writes
below its root, and stores differ in what they make of doubled slashes, so its root has none.
URIs that this package makes by itself (`source_uri`, `file://` before the path as it is) are not
percent-encoded and are never normalised.

**No secrets.** A spec is stored with the output, printed and sent to workers, and its URIs end up
in `source_uri`. So neither URIs nor options can hold a secret; credentials come from the
environment, a profile or a role. And a spec only says where bytes are: fsspec protocols that wrap
another file system, render templates, write caches or run on other machines are refused, as is the
one option that names a local file to write to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

PROTOCOLS = {
    *("file", "local", "memory", "http", "https", "ftp", "sftp", "ssh", "smb", "webdav"),
    *("s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "oss", "oci", "tos"),
    *("hf", "hdfs", "webhdfs", "lakefs"),
}
"""Protocols whose URL names a place and nothing else. fsspec has others that do more: `reference`
renders Jinja templates from the data; `simplecache`, `filecache`, `blockcache` and `cached` write
where their options say; `zip`, `tar`, `dir`, `generic` and `a::b` chains open a second file system;
`dask` and `jupyter` run elsewhere; `git` and `github` are code hosts."""

_ALIASES = {"local": "file", "s3a": "s3", "gcs": "gs"}
"""Protocols that are another name of one and the same store."""

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


def normalized(uri: str) -> str:
    """The one spelling of a URI or path that a person gave; normalising it again changes nothing.

    A local place (`x`, `~/x`, `file:/x`, `file:///x`, `file://localhost/x`, percent-encoded in a
    URI) becomes an absolute path. Elsewhere the protocol is in lower case and under its first name
    (`s3a` is `s3`), and the rest stays. For URIs without a `problem_of`.
    """
    protocol, rest = _protocol_and_rest(uri)
    if protocol != "file":
        return f"{protocol}://{rest}"
    path = os.path.abspath(os.path.expanduser(rest))
    return re.sub("^//+", "/", path)  # POSIX lets abspath keep two slashes at the beginning


def normalized_output(uri: str) -> str:
    """The one spelling of the root of an output: `normalized`, and on a store without `//`, `.`,
    `..` and slashes at the end."""
    uri = normalized(uri)
    protocol, mark, rest = uri.partition("://")
    if not mark:
        return uri
    bucket, *keys = rest.split("/")
    steps: list[str] = []
    for key in keys:
        if key == "..":
            steps = steps[:-1]
        elif key not in ("", "."):
            steps.append(key)
    return f"{protocol}://{'/'.join([bucket, *steps])}"


def protocol_of(uri: str) -> str:
    """The protocol of a URI or path under its first name (`s3` for `s3a`); "file" for a disk."""
    return _protocol_and_rest(uri)[0]


def is_local(uri: str) -> bool:
    """Whether a URI or path that a person gave is one of this machine's disks."""
    return protocol_of(uri) == "file"


def _protocol_and_rest(uri: str) -> tuple[str, str]:
    """The protocol of a URI by its first name, and the rest of it; of a local one the path, without
    host and percent-encoding."""
    scheme, mark, rest = uri.partition("://")
    protocol = _ALIASES.get(scheme.lower(), scheme.lower())
    if mark and protocol != "file":
        return protocol, rest
    if mark:
        host, slash, path = rest.partition("/")
        home = "~" if host == "~" else ""
        return "file", _decoded(f"{home}{slash}{path}")
    if uri.startswith("file:/"):
        return "file", _decoded(uri.removeprefix("file:"))
    return "file", uri


def _decoded(path: str) -> str:
    return unquote_to_bytes(path).decode(errors="surrogateescape")


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
    """Why a URI that a person gave is refused, in words that do not repeat a secret; None when it
    is accepted."""
    return problem_of_place(uri) or _problem_of_characters(uri)


def problem_of_place(uri: str) -> str | None:
    """`problem_of` for a URI of any origin: the names of listed objects hold what they hold."""
    protocol, mark, rest = uri.partition("://")
    if mark and protocol.lower() not in PROTOCOLS:
        accepted = ", ".join(sorted(PROTOCOLS))
        return f"protocol '{protocol}' cannot be used; those that can are {accepted}"
    if secret := _secret_in(uri):
        return f"{shown(uri)} comes with {secret}. {_ADVICE}"
    host = rest.partition("/")[0]
    if mark and protocol.lower() in ("file", "local") and host not in ("", "localhost", "~"):
        return (
            f"a file: URI names files of this machine, and this one names '{host}' as a machine. "
            f"Write file:///{rest} for the path /{rest}, or {rest} for a path below this folder"
        )
    return None


def _problem_of_characters(uri: str) -> str | None:
    """Why the characters of a URI name no object of any store."""
    text = _protocol_and_rest(uri)[1]
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the name is not valid UTF-8, so it cannot be stored. Rename it"
    if controls := sorted(set(re.findall(r"[\x00-\x1f\x7f]", text))):
        characters = ", ".join(f"U+{ord(control):04X}" for control in controls)
        return f"the name holds control characters ({characters}). Remove them"
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
