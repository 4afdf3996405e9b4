"""URIs and storage options: nothing that holds a secret or makes fsspec do more than read and write
is let in.

Oracle: canaries that must be in no message; files that must not come to exist.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ModelError, SpecError
from pipeline.job.model.store import resolve
from pipeline.job.spec import load_spec, spec_from
from pipeline.read.input.shards import list_shards
from pipeline.storage.addresses import (
    PROTOCOLS,
    is_local,
    normalized,
    normalized_output,
    problem_of,
    problem_of_options,
    shown,
)
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
        with pytest.raises(SpecError, match="names a type"):
            load_spec(job)
        job.write_text("name: x\n")
        with pytest.raises(SpecError, match="names a type"):
            load_spec(job, [f"name={text}"])
    uri = (
        "{{ cycler.__init__.__globals__.os.system('touch victim') }}/$(touch victim)/`touch victim`"
    )
    # a plain string, and nothing reads it
    assert spec_from({**MINIMAL, "output": {"uri": uri}}).output.uri == uri
    assert not victim.exists()


NAMES = ["out", "a b", "100% new", "a%20b", "emb #1", "emb?v=1", "日本 語", "a:b", "[1]*"]


@pytest.mark.parametrize("name", NAMES)
def test_every_spelling_of_a_local_place_is_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Oracle: pathlib, and the URI that it gives to a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / name
    escaped = place.as_uri()
    spellings = [
        str(place),
        name,
        f"./{name}",
        f"{name}/",
        f"x/..//{name}/.",
        f"~/{name}",
        f"/{place}",
        escaped,
        f"{escaped}/",
        escaped.replace("file:///", "file://localhost/"),
        escaped.replace("file:///", "file:/"),
        escaped.replace("file:///", "FILE:///"),
        escaped.replace("file:///", "local:///"),
        escaped.replace(tmp_path.as_uri(), "file://~"),
    ]
    assert {normalized(spelling) for spelling in spellings} == {str(place)}
    assert {normalized_output(spelling) for spelling in spellings} == {str(place)}
    assert normalized(str(place)) == str(place)  # nothing is decoded a second time
    assert all(map(is_local, spellings))
    assert not any(map(problem_of, spellings))
    assert {Store(spelling).root for spelling in spellings} == {str(place)}


def test_a_model_is_found_under_its_file_uri(tmp_path: Path) -> None:
    """It is taken for a directory, and not for a URI prefix or a Hub id."""
    (tmp_path / "my model").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve((tmp_path / "my model").as_uri())


@pytest.mark.parametrize(
    ("uri", "input_place", "output_place"),
    [
        ("s3://lake/x", "s3://lake/x", "s3://lake/x"),
        ("S3://lake/x", "s3://lake/x", "s3://lake/x"),
        ("s3a://lake/x", "s3://lake/x", "s3://lake/x"),
        ("gcs://lake/x", "gs://lake/x", "gs://lake/x"),
        ("s3://lake//x", "s3://lake//x", "s3://lake/x"),
        ("s3://lake/x/", "s3://lake/x/", "s3://lake/x"),
        ("s3://lake", "s3://lake", "s3://lake"),
        ("s3://lake//", "s3://lake//", "s3://lake"),
        ("s3://lake/a/./b//../c/", "s3://lake/a/./b//../c/", "s3://lake/a/c"),
        ("s3://lake/a%20b", "s3://lake/a%20b", "s3://lake/a%20b"),
        ("abfss://box@account/x//y", "abfss://box@account/x//y", "abfss://box@account/x/y"),
    ],
)
def test_a_key_of_an_input_stays_and_the_root_of_an_output_has_one_spelling(
    uri: str, input_place: str, output_place: str
) -> None:
    assert normalized(uri) == normalized(input_place) == input_place
    assert normalized_output(uri) == normalized_output(output_place) == output_place


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file://data/x", "names 'data' as a machine"),
        ("file://data/x", "data/x for a path below this folder"),
        ("local://host/x", "names 'host' as a machine"),
        ("a\x00b", "control characters (U+0000)"),
        ("a\nb\x1b[1m", "control characters (U+000A, U+001B)"),
        ("file:///a%00b", "control characters (U+0000)"),
        ("file:///a%FFb", "not valid UTF-8"),
        ("a\udcffb", "not valid UTF-8"),
        ("s3://lake/a\x7fb", "control characters (U+007F)"),
    ],
)
def test_what_is_the_name_of_no_object_is_refused_in_words(uri: str, words: str) -> None:
    assert words in (problem_of(uri) or "")
    with pytest.raises(SpecError):
        Store(uri)
