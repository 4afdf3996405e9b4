"""Whether the source of a row may be asked, and with which storage options.

In: the URI of a shard and the options of the stored spec, which both lie in the output, and what
the operator of this command has named: the output, its storage options, and maybe options for the
sources. Out: the options to read the shard with, or None where only the output names its server.
What is stored can agree with the operator and decides nothing: a server that it alone names gets no
request and no credentials. The stored place of a model is held to the same rule
(`LoadedSnapshot.model`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.storage.addresses import protocol_of
from pipeline.storage.options import S3_OF_AWS, server_of
from pipeline.storage.store import Store

_OTHERWISE_ON_S3 = {
    *("endpoint_url", "client_kwargs.endpoint_url"),
    *("anon", "client_kwargs.region_name"),
}
"""Options of S3 that a source may have and the output not. The first two name the server, which is
compared. Reading without credentials gives nothing away, and S3 itself redirects to the region of a
bucket."""


def options_to_read(
    uri: str,
    stored_options: Mapping[str, Any],
    store: Store,
    source_options: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The storage options to read a stored URI with: always those of the operator.

    A path of this machine is read. Another place is read with `source_options` where the operator
    has given them, whatever its server. Otherwise it is read where its server is the one of the
    output, or the S3 endpoint of the environment, and where every stored option is one that the
    operator gives for that server. None: it must not be asked.
    """
    server = server_of(uri, stored_options)
    if not server:
        return {}
    if source_options is not None:
        return dict(source_options)
    is_s3 = protocol_of(uri) == "s3"
    if server == server_of(store.uri, store.options):
        options = dict(store.options)
    elif is_s3 and server == server_of("s3://", {}) != S3_OF_AWS:
        options = {}
    else:
        return None
    allowed = _OTHERWISE_ON_S3 if is_s3 else set()
    stored = {option for option in _flat(stored_options) if option[0] not in allowed}
    if stored - set(_flat(options)):
        return None
    return options | ({"anon": True} if is_s3 and stored_options.get("anon") is True else {})


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value as text) of options, those of nested mappings under `outer.inner`."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", repr(value)
