"""`init` looks at data that nobody has described: the spec that it writes is one that a run takes.

Oracle: the data, which the test wrote and whose fields it knows; `load_spec`, and a whole run with
the stand-in model for what the spec makes of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warcio
from warcio.statusandheaders import StatusAndHeaders

from pipeline.driver.planning.plan import make_plan
from pipeline.driver.starter.models import known_models, model_named
from pipeline.driver.starter.starter import SCHEMA_NAME, Starter, look_at
from pipeline.errors import InputError, ModelError, SpecError
from pipeline.job.spec import load_spec
from pipeline.output.dataset import open_dataset
from tests.conftest import S3Place
from tests.support.stand_in import job_of, run, store_of

JAPANESE = "これは日本語の文章です。文埋め込みは、文をベクトルに変換します。"
ENGLISH = "The library opens a stored file and reads the lines of it one after the other."
N = 24


def prose(i: int, language: str = "en") -> str:
    return f"{JAPANESE if language == 'ja' else ENGLISH} {i}. " * (2 + i % 5)


def languages(i: int) -> str:
    return "ja" if i % 3 == 0 else "en"


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def odd_names(folder: Path) -> dict[str, Any]:
    records = [
        {
            "nr": f"x-{i}",
            "inhalt": prose(i),
            "kopf": {"sprache": languages(i)},
            "link": f"https://example.org/a/very/long/address/that/is/no/text/{i}" * 3,
            "score": i / 7,
            "tags": ["a", "b"],
        }
        for i in range(N)
    ]
    write_lines(folder / "part-0.jsonl", records[:20])
    write_lines(folder / "part-1.jsonl", records[20:])
    return {"text": "inhalt", "id": "nr", "language": "kopf.sprache", "keeps": {"link"}}


def nested(folder: Path) -> dict[str, Any]:
    records = [
        {"meta": {"uuid": f"{i:032x}", "lang": languages(i), "title": f"No {i}"},
         "doc": {"body": {"plain": prose(i, languages(i))}}}
        for i in range(N)
    ]  # fmt: skip
    write_lines(folder / "a.jsonl", records)
    return {
        "text": "doc.body.plain",
        "id": "meta.uuid",
        "language": "meta.lang",
        "title": "meta.title",
    }


def parquet_with_lists_and_structs(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    records = [
        {
            "id": i,
            "paragraphs": [prose(i), prose(i + 1)],
            "meta": {"source": "wiki" if i % 2 else "news", "year": 2020 + i % 3},
            "vector": [0.1, 0.2],
        }
        for i in range(N)
    ]
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=5)
    return {"text": "paragraphs", "id": "id", "keeps": {"meta.source", "meta.year"}}


def csv_with_semicolons(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=";")
    writer.writerow(["Nummer", "Titel", "Inhalt", "Sprache"])
    for i in range(N):
        writer.writerow([i, f"Title {i}, or so", prose(i), languages(i)])
    (folder / "a.csv").write_text(sink.getvalue(), encoding="utf-8")
    return {"text": "Inhalt", "id": "Nummer", "language": "Sprache"}


def plain_text(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(prose(i, "ja") for i in range(N)), encoding="utf-8")
    return {"text": "text", "id": None, "model": "ruri"}


def crawled_text(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    with (folder / "a.warc.wet.gz").open("wb") as sink:
        writer = warcio.warcwriter.WARCWriter(sink, gzip=True)
        for i in range(N):
            headers = [("WARC-Identified-Content-Language", "jpn" if i % 3 == 0 else "eng")]
            writer.write_record(
                writer.create_warc_record(
                    f"https://example.org/{i}",
                    "conversion",
                    payload=io.BytesIO(prose(i).encode()),
                    warc_content_type="text/plain",
                    warc_headers_dict=dict(headers),
                )
            )
    return {
        "text": "text",
        "id": "WARC-Target-URI",
        "language": "WARC-Identified-Content-Language",
    }


def crawled_pages(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    with (folder / "a.warc").open("wb") as sink:
        writer = warcio.warcwriter.WARCWriter(sink, gzip=False)
        for i in range(N):
            status = StatusAndHeaders("200 OK", [("Content-Type", "text/plain")], "HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(
                    f"https://example.org/{i}",
                    "response",
                    payload=io.BytesIO(prose(i).encode()),
                    http_headers=status,
                )
            )
    return {"text": "text", "id": "WARC-Target-URI"}


def folders_of_a_hive(folder: Path) -> dict[str, Any]:
    for language in ("en", "ja"):
        records = [
            {"doc_id": f"{language}{i}", "content": prose(i, language), "title": f"T {i}"}
            for i in range(N // 2)
        ]
        write_lines(folder / f"lang={language}/part.jsonl", records)
    return {"text": "content", "id": "doc_id", "language": "lang", "title": "title"}


def lines_beside_a_description(folder: Path) -> dict[str, Any]:
    records = [{"url": f"https://example.org/{i}", "abstract": prose(i)} for i in range(N)]
    write_lines(folder / "sub/data.ndjson", records)
    (folder / "README.txt").write_text("What this is.\n")
    return {"text": "abstract", "id": "url"}


def csv_of_a_japanese_spreadsheet(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    rows = [f"{i},題名{i},{prose(i, 'ja')}" for i in range(N)]
    (folder / "a.csv").write_bytes("\r\n".join(["番号,題名,本文", *rows]).encode("cp932"))
    return {"text": "本文", "title": "題名", "model": "ruri"}


def json_lines_called_text(folder: Path) -> dict[str, Any]:
    records = [{"uuid": f"{i:032x}", "message": prose(i)} for i in range(N)]
    write_lines(folder / "dump.txt", records)
    return {"text": "message", "id": "uuid"}


def one_file_without_a_suffix(folder: Path) -> dict[str, Any]:
    records = [{"docId": f"a{i}", "message": f"<p>{prose(i)}</p>"} for i in range(N)]
    write_lines(folder / "dump", records)
    return {"text": "message", "id": "docId", "words": "# Check: the texts hold HTML tags"}


KINDS = [
    *(csv_of_a_japanese_spreadsheet, json_lines_called_text, one_file_without_a_suffix),
    *(odd_names, nested, parquet_with_lists_and_structs, csv_with_semicolons, plain_text),
    *(crawled_text, crawled_pages, folders_of_a_hive, lines_beside_a_description),
]


def written(starter: Starter, path: Path) -> Path:
    starter.write(path)
    return path


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_the_fields_of_unknown_data_are_found_and_a_run_takes_the_spec(
    tmp_path: Path, write: Callable[[Path], dict[str, Any]]
) -> None:
    expected = write(tmp_path / "in")
    starter = look_at(str(tmp_path / "in"), output=str(tmp_path / "out"))
    spec = load_spec(written(starter, tmp_path / "job.yaml"))
    assert spec == starter.spec
    assert spec.input.text_column == expected["text"]
    if "id" in expected:
        assert spec.input.id_column == expected["id"]
    assert expected.get("words", "") in starter.text
    if "language" in expected:
        assert spec.output.partition_by[0] == expected["language"]
        assert expected["language"] in spec.input.keep_columns
    if "title" in expected:
        template = f'text_template: "{{{expected["title"]}}}\\n{{{expected["text"]}}}"'
        assert f"# {template}" in starter.text
        assert expected["title"] in spec.input.keep_columns
    assert expected.get("keeps", set()) <= spec.input.keep_columns.keys()
    assert expected.get("model", "") in spec.model.path
    spec = load_spec(tmp_path / "job.yaml", ["runtime.device=cpu"])
    assert make_plan(job_of(spec), store_of(spec)).todo
    snapshot = run(spec)
    assert snapshot is not None
    assert (snapshot.n_documents, snapshot.n_rejects) == (N, 0)
    texts = open_dataset(spec.output.uri).to_table(columns=["text"])["text"].to_pylist()
    assert all(ENGLISH[:20] in text or JAPANESE[:10] in text for text in texts)


def test_a_pattern_is_kept_and_narrowed_to_the_format_that_is_meant(tmp_path: Path) -> None:
    odd_names(tmp_path / "in")
    starter = look_at(f"{tmp_path}/in/part-*.jsonl")
    assert starter.spec.input.uri == (f"{tmp_path}/in/part-*.jsonl",)
    (tmp_path / "in/part-notes.txt").write_text("Notes.\n")
    starter = look_at(f"{tmp_path}/in/part-*")
    assert starter.spec.input.uri == (f"{tmp_path}/in/part-*.jsonl",)
    assert "1 text" in starter.text


def test_data_on_s3_is_looked_at_in_place(tmp_path: Path, s3: S3Place) -> None:
    lines = [json.dumps({"id": i, "body": prose(i)}) for i in range(N)]
    s3.filesystem.pipe_file(f"{s3.key}/in/a.jsonl", "\n".join(lines).encode())
    uri = f"s3://{s3.key}/in"
    options = {"endpoint_url": s3.endpoint_url}
    starter = look_at(uri, storage_options=options, output=str(tmp_path / "out"))
    spec = load_spec(written(starter, tmp_path / "job.yaml"), ["runtime.device=cpu"])
    assert spec.input.storage_options == options
    assert (spec.input.text_column, spec.input.id_column) == ("body", "id")
    snapshot = run(spec)
    assert snapshot is not None
    assert snapshot.n_documents == N


def test_the_first_line_leads_editors_to_the_schema_which_no_run_takes_for_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_names(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = written(look_at("."), tmp_path / "job.yaml")
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema=./{SCHEMA_NAME}"
    schema = json.loads((tmp_path / SCHEMA_NAME).read_text(encoding="utf-8"))
    assert "text_column" in schema["$defs"]["InputSpec"]["properties"]
    spec = load_spec(path)
    assert not Path(spec.output.uri).resolve().is_relative_to(tmp_path)
    plan = make_plan(job_of(spec), store_of(spec))
    assert sorted(Path(shard.uri).name for shard in plan.shards) == ["part-0.jsonl", "part-1.jsonl"]


def test_a_spec_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    odd_names(tmp_path / "in")
    starter = look_at(str(tmp_path / "in"))
    path = tmp_path / "job.yaml"
    path.write_text("mine")
    with pytest.raises(SpecError, match="--force"):
        starter.write(path)
    assert path.read_text() == "mine"
    starter.write(path, is_forced=True)
    assert load_spec(path) == starter.spec


def test_every_model_of_the_list_makes_a_spec_with_its_licence_and_prompt(tmp_path: Path) -> None:
    odd_names(tmp_path / "in")
    for name, model in known_models().items():
        starter = look_at(str(tmp_path / "in"), model=name)
        assert (starter.spec.model.path, starter.spec.model.prompt) == (model.path, model.prompt)
        assert model.licence in starter.text
        assert ("forbids commercial use" in starter.text) == (model.licence == "non-commercial")


def test_models_of_the_jobs_have_the_prompts_of_the_jobs() -> None:
    from tests import ROOT

    by_path = {model.path: model for model in known_models().values()}
    for path in (ROOT / "jobs").glob("*.yaml"):
        spec = load_spec(path)
        known = by_path[spec.model.path]
        if spec.model.prompt is not None:
            assert known.prompt == spec.model.prompt, path


@pytest.mark.parametrize(
    ("name", "words"),
    [("ruri-v3", "did you mean ruri-v3-"), ("nothing-like-it", "a name on the Hub such as")],
)
def test_an_unknown_short_name_is_answered_with_the_list(name: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        model_named(name)
    assert model_named("org/model").path == "org/model"


def test_a_model_directory_says_itself_what_it_is(tmp_path: Path, minilm_dir: Path) -> None:
    records = [{"id": i, "text": ENGLISH * 50} for i in range(N)]
    write_lines(tmp_path / "in/a.jsonl", records)
    starter = look_at(str(tmp_path / "in"), model=str(minilm_dir))
    assert f"path: {minilm_dir} # apache-2.0, 384 dimensions, 256 tokens" in starter.text
    assert starter.spec.prepare.long_documents == "chunk"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        look_at(str(tmp_path / "in"), model=str(tmp_path / "empty"))


def test_long_texts_are_cut_into_chunks_where_the_model_is_short(tmp_path: Path) -> None:
    records = [{"id": i, "text": ENGLISH * (100 if i % 2 else 1)} for i in range(N)]
    write_lines(tmp_path / "in/a.jsonl", records)
    short = look_at(str(tmp_path / "in"), model="multilingual-e5-small")
    assert short.spec.prepare.long_documents == "chunk"
    assert "About 50 % of the texts" in short.text
    long = look_at(str(tmp_path / "in"), model="bge-m3")
    assert long.spec.prepare.long_documents == "truncate"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"id": 1, "n": 2}\n', "no field looks like a text; its fields are id"),
        ("a.jsonl", "", "empty"),
        ("a.jsonl", '[{"id": 1}]', "JSON"),
        ("a.jsonl.gz", "no gzip", "a.jsonl.gz"),
        ("a.bin", "x", "known suffixes"),
    ],
)
def test_what_cannot_be_read_is_said_with_what_was_looked_at(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    with pytest.raises((InputError, SpecError), match=words) as caught:
        look_at(str(tmp_path / "in"))
    assert str(tmp_path) in str(caught.value)


def test_a_field_that_few_records_have_is_not_the_text_of_all(tmp_path: Path) -> None:
    records = [
        {"id": str(i), "remark": prose(i), **({"text": prose(i) * 9} if i % 8 == 0 else {})}
        for i in range(N)
    ]
    write_lines(tmp_path / "in/a.jsonl", records)
    assert look_at(str(tmp_path / "in")).spec.input.text_column == "remark"


def test_a_first_text_that_is_empty_is_a_text(tmp_path: Path) -> None:
    records = [{"id": str(i), "text": prose(i) if i else ""} for i in range(N)]
    write_lines(tmp_path / "in/a.jsonl", records)
    assert look_at(str(tmp_path / "in")).spec.input.text_column == "text"


def test_values_that_would_break_a_comment_or_yaml_do_not(tmp_path: Path) -> None:
    records = [
        {"id: #": f"{i}", "a\nb": "x", "te'xt: {": prose(i) + " \x1b[31m\u2028", "no": "yes"}
        for i in range(N)
    ]
    write_lines(tmp_path / "in/a.jsonl", records)
    starter = look_at(str(tmp_path / "in"))
    assert load_spec(written(starter, tmp_path / "job.yaml")) == starter.spec
    assert starter.spec.input.text_column == "te'xt: {"
    assert "\x1b" not in starter.text
