"""URIs and storage options: nothing that holds a secret or makes fsspec do more than read and write
is let in.

Oracle: canaries that must be in no message; files that must not come to exist.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SpecError
from pipeline.job.model_store import resolve
from pipeline.job.spec import load_spec, spec_from
from pipeline.read.shards import list_shards
from pipeline.storage.addresses import PROTOCOLS, problem_of, problem_of_options, shown
from pipeline.storage.store import Store
from tests.job.test_spec import MINIMAL, spec_with

SECRET_URIS = [
    "https://user:canary@host/a.jsonl",
    "https://canary@host/a.jsonl",
    "sftp://user:canary@host/a.jsonl",
    "s3://canary:canary@bucket/a.jsonl",
    "https://host/a.jsonl?X-Amz-Credential=canary&X-Amz-Signature=canary",
    "https://host/a.jsonl?sv=2026&sig=canary",
    "https://host/a.jsonl?download=1&token=canary",
    "https://host/a.jsonl?Expires=1&Signature=canary&Key-Pair-Id=canary",
    "https://host/a.jsonl?X-Goog-Security-Token=canary",
    "https://host?access_key=canary",
]
SECRET_OPTIONS: list[dict[str, Any]] = [
    {"key": "canary"},
    {"secret": "canary"},
    {"token": "canary"},
    {"SAS_Token": "canary"},
    {"account_key": "canary"},
    {"connection_string": "AccountKey=canary"},
    {"client_kwargs": {"aws_secret_access_key": "canary"}},
    {"client_kwargs": {"headers": {"Authorization": "Bearer canary"}}},
    {"s3_additional_kwargs": {"SSECustomerKey": "canary"}},
    {"endpoint_url": "http://user:canary@127.0.0.1:9000"},
    {"config_kwargs": {"proxies": {"https": "http://user:canary@proxy:3128"}}},
    {"endpoints": ["https://host/?sig=canary"]},
]
FORBIDDEN = [
    "reference",
    "simplecache",
    "filecache",
    "blockcache",
    "cached",
    "dask",
    "zip",
    "dir",
    "generic",
    "git",
]


@pytest.mark.parametrize("uri", SECRET_URIS)
@pytest.mark.parametrize("section", ["input", "output", "model"])
def test_a_uri_with_a_secret_is_refused_everywhere_in_a_spec_and_not_repeated(
    section: str, uri: str
) -> None:
    with pytest.raises(SpecError, match="environment") as caught:
        spec_from(spec_with(section, **{"path" if section == "model" else "uri": uri}))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("options", SECRET_OPTIONS, ids=str)
def test_a_secret_among_storage_options_is_refused_at_any_depth_and_not_repeated(
    options: dict[str, Any],
) -> None:
    with pytest.raises(SpecError, match="environment") as caught:
        spec_from(spec_with("output", storage_options=options))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("uri", SECRET_URIS)
def test_the_same_holds_where_no_spec_is_in_between(uri: str) -> None:
    """`corpus-embed status URI`, and the functions of the package."""
    for use in (lambda: Store(uri), lambda: list_shards([uri], {}), lambda: resolve(uri)):
        with pytest.raises(SpecError, match="environment") as caught:
            use()
        assert "canary" not in str(caught.value)
    with pytest.raises(SpecError, match="environment"):
        Store("s3://bucket/out", {"secret": "canary"})


@pytest.mark.parametrize(
    "uri",
    [
        "s3://lake/wiki/part-?.jsonl",
        "abfss://container@account.dfs.core.windows.net/x.jsonl",
        "/data/a?token=b.jsonl",
        "sftp://user@host/a.jsonl",
        "https://host/a.jsonl?download=1",
        "s3://lake/key=1/token=2/a.jsonl",
        "s3://[lake/a",
    ],
)
def test_what_only_looks_like_it_is_let_in(uri: str) -> None:
    assert problem_of(uri) is None


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "http://127.0.0.1:9000"},
        {"anon": True},
        {"profile": "reader"},
        {"account_name": "lake"},
        {"client_kwargs": {"region_name": "eu-west-1", "verify": False}},
        {"key_filename": "~/.ssh/id"},
    ],
)
def test_harmless_options_are_let_in(options: dict[str, Any]) -> None:
    assert problem_of_options(options) is None


def test_shown_keeps_what_a_person_needs_and_leaves_out_the_rest() -> None:
    assert shown("https://user:pass@host/p/x.jsonl?X-Amz-Signature=abc") == "https://host/p/x.jsonl"
    assert shown("https://host?sig=abc") == "https://host"
    # nobody can say what abc opens
    assert shown("https://host/x.jsonl?id=abc") == "https://host/x.jsonl"
    assert shown("s3://lake/part-?.jsonl") == "s3://lake/part-?.jsonl"
    assert shown("/data/a?b.jsonl") == "/data/a?b.jsonl"
    assert shown("s3://[lake/a") == "s3://[lake/a"


@pytest.mark.parametrize("protocol", [*FORBIDDEN, "simplecache::s3", "nosuch"])
def test_a_protocol_that_does_more_than_read_and_write_one_store_is_refused(protocol: str) -> None:
    with pytest.raises(SpecError, match="protocol"):
        spec_from(spec_with("input", uri=f"{protocol}://lake/a.jsonl"))
    with pytest.raises(SpecError, match="protocol"):
        Store(f"{protocol}://lake/out")


def test_every_allowed_protocol_is_one_that_fsspec_knows() -> None:
    known = importlib.import_module("fsspec.registry").known_implementations
    assert set(known) >= PROTOCOLS - {"abfss"}  # adlfs brings that name itself
    assert not PROTOCOLS & set(FORBIDDEN)


def test_no_option_makes_fsspec_write_a_local_file(tmp_path: Path) -> None:
    """fsspec's mmap cache opens `location` for writing and puts what it reads there."""
    options = {"cache_type": "mmap", "cache_options": {"location": str(tmp_path / "victim")}}
    with pytest.raises(SpecError, match="cache_options"):
        spec_from(spec_with("input", storage_options=options))
    with pytest.raises(SpecError, match="cache_options"):
        Store("http://127.0.0.1:9/x", options)


@pytest.mark.parametrize(
    ("content", "override"),
    [
        ("input: {storage_options: canary}", "name=x"),  # of the wrong type
        ("input:\n  uri: {a: 'https://u:canary@h/'}", "name=x"),
        ("secret: canary: [", "name=x"),  # no YAML
        ("name: x", "input.storage_options=[canary: {"),
        ("name: x", "input.storage_options.secret=canary"),
        ("name: x", "name.secret=canary"),
    ],
)
def test_no_message_about_a_broken_spec_repeats_what_may_be_a_secret(
    tmp_path: Path, content: str, override: str
) -> None:
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "job.yaml", [override])
    assert "canary" not in str(caught.value)


def test_a_spec_cannot_execute_anything(tmp_path: Path) -> None:
    """Neither by YAML tags, in the file or in an override, nor by a template in a value."""
    victim = tmp_path / "victim"
    job = tmp_path / "job.yaml"
    for text in (
        f"!!python/object/apply:os.system ['touch {victim}']",
        f"!!python/object/new:os.mkdir ['{victim}']",
    ):
        job.write_text(f"name: {text}\n")
        with pytest.raises(SpecError, match="constructor"):
            load_spec(job)
        job.write_text("name: x\n")
        with pytest.raises(SpecError, match="constructor"):
            load_spec(job, [f"name={text}"])
    uri = (
        "{{ cycler.__init__.__globals__.os.system('touch victim') }}/$(touch victim)/`touch victim`"
    )
    # a plain string, and nothing reads it
    assert spec_from({**MINIMAL, "output": {"uri": uri}}).output.uri == uri
    assert not victim.exists()
