"""The written files as others read them: pyarrow, DuckDB and Polars, every precision, any partition
value.

Oracle: the vectors that went in, rounded by numpy; the readers' own types; the metadata that
pyarrow reports.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.storage import layout
from pipeline.storage.lineage import Manifest
from pipeline.write import parquet
from pipeline.write.vectors import vector_columns
from tests.support.outputs import write_shard
from tests.support.stand_in import DIM, HashEngine, make_spec, run, vector_of_text

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "ubinary")
DOCS = [
    {"id": f"d{n}", "text": f"text number {n}", "lang": "en" if n % 3 else "ja"} for n in range(40)
]
COLUMNS = [
    "doc_id",
    "chunk",
    "text",
    "lang",
    "embedding",
    "n_tokens",
    "truncated",
    "text_sha256",
    "source_uri",
    "source_etag",
    "source_record",
    "char_start",
    "char_end",
    "part_id",
    "run_id",
    "fingerprint",
]


def vectors_in() -> np.ndarray:
    return np.stack([vector_of_text(doc["text"]) for doc in DOCS])


def rounded(vectors: np.ndarray, precision: str) -> np.ndarray:
    """What each precision may keep, by another way than the product's: numpy's own float16, powers
    of two."""
    if precision == "float16":
        return vectors.astype(np.float16).astype(np.float32)
    if precision == "bfloat16":  # 8 bits of mantissa, the leading one included
        _, exponent = np.frexp(vectors)
        step = np.ldexp(1.0, exponent - 8)
        return (np.round(vectors.astype(np.float64) / step) * step).astype(np.float32)
    if precision == "ubinary":
        bits = (vectors > 0).reshape(len(vectors), -1, 8)
        return (bits * [128, 64, 32, 16, 8, 4, 2, 1]).sum(axis=2).astype(np.uint8)
    return vectors


def output(tmp_path: Path, precision: str = "float32", **more: Any) -> Path:
    write_shard(tmp_path / "in/a.jsonl", DOCS)
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"vector_precision": precision, **more},
    )
    run(spec)
    return tmp_path / "out"


def data_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "data").rglob("*") if path.is_file())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pyarrow_duckdb_and_polars_read_equal_vectors_of_fixed_size(
    tmp_path: Path, precision: str
) -> None:
    root = output(tmp_path, precision)
    (path,) = data_files(root)
    width = DIM // 8 if precision == "ubinary" else DIM
    element = {
        "int8": (pa.int8(), pl.Int8, "TINYINT"),
        "ubinary": (pa.uint8(), pl.UInt8, "UTINYINT"),
    }
    arrow_type, polars_type, duckdb_type = element.get(
        precision, (pa.float32(), pl.Float32, "FLOAT")
    )
    table = pq.read_table(path)
    assert table.schema.field("embedding").type.list_size == width
    assert table.schema.field("embedding").type.value_type == arrow_type
    assert not table.schema.field("embedding").nullable
    by_arrow = np.array(table["embedding"].to_pylist())
    by_duckdb = duckdb.sql(
        f"select embedding, typeof(embedding) t from read_parquet('{path}')"
    ).fetchall()
    by_polars = pl.read_parquet(path)
    assert {row[1] for row in by_duckdb} <= {f"{duckdb_type}[]", f"{duckdb_type}[{width}]"}
    assert by_polars.schema["embedding"] == pl.Array(polars_type, width)
    np.testing.assert_array_equal(np.array([row[0] for row in by_duckdb]), by_arrow)
    np.testing.assert_array_equal(by_polars["embedding"].to_numpy(), by_arrow)
    if precision != "int8":
        np.testing.assert_array_equal(by_arrow, rounded(vectors_in(), precision))
    else:
        scale = np.array(table["embedding_scale"].to_pylist())
        # rounding to the nearest of 255 steps is off by at most half a step
        assert (np.abs(by_arrow * scale[:, None] - vectors_in()) <= scale[:, None] * 0.5001).all()
        assert (np.abs(by_arrow).max(axis=1) == 127).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_read_vectors_gives_ids_and_one_array(tmp_path: Path, precision: str) -> None:
    root = output(tmp_path, precision, partition_by=["lang"])
    ids, vectors = read_vectors(str(root))
    order = [int(value[1:]) for value in ids.to_pylist()]
    assert sorted(order) == list(range(len(DOCS)))
    expected = rounded(vectors_in(), precision)[order]
    assert vectors.shape == expected.shape
    assert vectors.dtype == (np.uint8 if precision == "ubinary" else np.float32)
    if precision == "int8":
        np.testing.assert_allclose(
            vectors, expected, atol=float(np.abs(expected).max()) / 254 * 1.001
        )
    else:
        np.testing.assert_array_equal(vectors, expected)


def test_the_columns_are_those_of_the_contract_with_partition_columns_in_the_folders(
    tmp_path: Path,
) -> None:
    root = output(tmp_path)
    assert open_dataset(str(root)).schema.names == COLUMNS
    assert pq.read_schema(data_files(root)[0]).names == COLUMNS
    fields = {field.name: str(field.type) for field in open_dataset(str(root)).schema}
    assert fields["doc_id"] == fields["text"] == fields["text_sha256"] == "string"
    assert (fields["chunk"], fields["n_tokens"], fields["source_record"]) == (
        "int32",
        "int32",
        "int64",
    )
    other = output(tmp_path / "other", "int8", partition_by=["lang"], include_text=False)
    names = [name for name in COLUMNS if name != "text"]
    names.insert(names.index("embedding") + 1, "embedding_scale")
    assert open_dataset(str(other)).schema.names == names
    assert pq.read_schema(data_files(other)[0]).names == [name for name in names if name != "lang"]
    assert {path.parent.name for path in data_files(other)} == {"lang=en", "lang=ja"}


def test_the_footer_says_where_the_file_comes_from(tmp_path: Path) -> None:
    root = output(tmp_path)
    (path,) = data_files(root)
    lineage = json.loads(pq.read_metadata(path).metadata[b"corpus_embed"])
    row = pq.read_table(path).to_pylist()[0]
    assert {name: lineage[name] for name in ("part_id", "run_id", "fingerprint")} == {
        name: row[name] for name in ("part_id", "run_id", "fingerprint")
    }
    assert (lineage["format_version"], lineage["dimension"], lineage["vector_precision"]) == (
        1,
        DIM,
        "float32",
    )
    assert [source["uri"] for source in lineage["sources"]] == [row["source_uri"]]
    assert path.name == f"part-{row['part_id']}.parquet"


def page_headers_with_crc(data: bytes, column: Any) -> bool:
    """A flipped byte inside the first data page of the column is noticed, which only a checksum can
    do."""
    start = column.data_page_offset
    damaged = bytearray(data)
    damaged[start + column.total_compressed_size - 8] ^= 0x01
    try:
        pq.read_table(io.BytesIO(bytes(damaged)), page_checksum_verification=True)
    except OSError as error:
        return "CRC" in str(error)
    return False


def test_vectors_are_byte_stream_split_with_zstd_and_every_page_has_a_checksum(
    tmp_path: Path,
) -> None:
    root = output(tmp_path)
    (path,) = data_files(root)
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    embedding = columns["embedding.list.element"]
    assert "BYTE_STREAM_SPLIT" in embedding.encodings
    assert not embedding.has_dictionary_page
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert columns["source_uri"].has_dictionary_page
    assert page_headers_with_crc(path.read_bytes(), embedding)


def test_many_rows_are_cut_into_row_groups_of_bounded_size() -> None:
    vectors = np.zeros((40_000, 512), np.float32)
    data = parquet.encode(pa.table(vector_columns(vectors, "float32")), {})
    metadata = pq.read_metadata(io.BytesIO(data))
    assert metadata.num_row_groups >= 2
    assert (
        max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) * 2048
        <= 64 << 20
    )


VALUES = [
    "en",
    "a b",
    "a/b",
    "../../evil",
    "..",
    ".",
    "a=b",
    "漢字",
    "🦉",
    "100%",
    "a\\b",
    'a:b*?"<>|',
    "line\nbreak",
    " ",
    "",
    None,
    "null",
    "__HIVE_DEFAULT_PARTITION__",
    "%5F_HIVE_DEFAULT_PARTITION__",
    "é",
    "e\u0301",
    "A",
    "a",
]


def test_any_partition_value_reads_back_equal_and_stays_inside_data(tmp_path: Path) -> None:
    docs = [
        {"id": f"{i}-{k}", "text": f"{i} {k}", "lang": value}
        for k in range(2)
        for i, value in enumerate(VALUES)
    ]
    write_shard(tmp_path / "in/a.jsonl", docs)
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"]},
    )
    run(spec)
    dataset = open_dataset(str(tmp_path / "out"))
    langs = {
        row["doc_id"]: row["lang"]
        for row in dataset.to_table(columns=["doc_id", "lang"]).to_pylist()
    }
    assert langs == {doc["id"]: doc["lang"] for doc in docs}
    for value in VALUES:
        where = (
            pa.compute.field("lang").is_null()
            if value is None
            else pa.compute.field("lang") == value
        )
        expected = {doc["id"] for doc in docs if doc["lang"] == value}
        assert (
            set(dataset.to_table(columns=["doc_id"], filter=where)["doc_id"].to_pylist())
            == expected
        )
    # a folder a value
    assert len({path.parent for path in data_files(tmp_path / "out")}) == len(VALUES)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data", "_meta"}
    assert all(
        len(path.relative_to(tmp_path / "out/data").parts) == 2
        for path in data_files(tmp_path / "out")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    paths = [
        file.path
        for m in (tmp_path / "out/_meta/manifests").rglob("*.json")
        for file in Manifest.from_json(m.read_bytes(), "m").data_files
    ]
    assert set(paths) == {
        str(path.relative_to(tmp_path / "out")) for path in data_files(tmp_path / "out")
    }


NASTY = [
    *VALUES,
    "x" * 240,
    "x" * 300,
    "🦉" * 20,
    "漢" * 100,
    "a%2Fb",
    "%",
    "%zz",
    "1",
    "01",
    "1.0",
    "2020-01-01",
    "true",
    "a\tb",
    "\x7f",
    "a+b",
    "a&b?c#d",
    "~",
    "C:\\x",
    "CON",
    "\u202e",
    "'",
    '"',
    "[x]",
    "{a}",
    "-rf",
    "\x00",
    "a\x00b",
    "\ufeff",
]
ANY = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
UNRESERVED = set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def bytes_in_a_path(sign: str) -> int:
    """By the rule of docs/output-format.md: percent-encoded, but for printable characters outside
    ASCII."""
    encoded = sign.encode()
    return sum(
        1 if byte in UNRESERVED or (byte > 127 and sign.isprintable()) else 3 for byte in encoded
    )


@pytest.mark.thorough
@settings(max_examples=8, deadline=None)
@example(list(zip(NASTY, NASTY, strict=True)))
@example([("en", ":" + "\x80" * 22 + "\u0800" * 13)])
@example([(None, "漢" * 83), (None, "漢" * 84)])
@given(st.lists(st.tuples(ANY, ANY), min_size=1, max_size=12))
def test_any_id_and_partition_value_is_read_equal_by_three_readers_or_rejected_as_too_long(
    pairs: list[tuple[str | None, str | None]],
) -> None:
    docs = [
        {"id": f"{i}{name}", "text": f"{i}", "lang": value} for i, (name, value) in enumerate(pairs)
    ]
    fits = [len("lang=") + sum(map(bytes_in_a_path, value or "")) <= 255 for _, value in pairs]
    expected = {doc["id"]: doc["lang"] for doc, ok in zip(docs, fits, strict=True) if ok}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_shard(root / "in/a.jsonl", docs)
        sections = {"input": {"keep_columns": ["lang"]}, "output": {"partition_by": ["lang"]}}
        snapshot = run(make_spec(root / "in", root / "out", **sections))
        assert snapshot is not None
        assert snapshot.reject_reasons == (
            {"invalid_column": fits.count(False)} if not all(fits) else {}
        )
        files = data_files(root / "out")
        assert {path.parent.parent for path in files} <= {root / "out/data"}
        assert {path.name for path in root.iterdir()} == {"in", "out"}
        by_arrow = open_dataset(str(root / "out")).to_table(columns=["doc_id", "lang"]).to_pylist()
        assert {row["doc_id"]: row["lang"] for row in by_arrow} == expected
        if not files:
            return
        hive = "read_parquet(?, hive_partitioning = true, hive_types_autocast = false)"
        answer = duckdb.execute(
            f"select doc_id, lang from {hive}", [[str(path) for path in files]]
        ).fetchall()
        assert dict(answer) == expected
        frame = pl.read_parquet(
            files, glob=False, hive_partitioning=True, hive_schema={"lang": pl.String}
        )
        as_polars = {
            key: None if value == layout.NULL_PARTITION else value
            for key, value in expected.items()
        }
        # it takes the escaped text for null too
        assert dict(frame.select("doc_id", "lang").rows()) == as_polars


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("int64", [0, -5, 2**62, None]),
        ("float64", [0.5, -1e300, 3.0, 1 / 3, None]),
        ("bool", [True, False, None]),
        ("date", ["2020-02-29", "1969-12-31", None]),
        ("timestamp", ["2020-02-29T12:34:56.789Z", "1969-12-31T23:59:59Z", None]),
    ],
)
def test_typed_partition_columns_read_back_equal(
    tmp_path: Path, type_name: str, values: list[Any]
) -> None:
    docs = [{"id": str(i), "text": f"{i}", "key": value} for i, value in enumerate(values)]
    write_shard(tmp_path / "in/a.jsonl", docs)
    kept = {"keep_columns": {"key": type_name}}
    plain = make_spec(tmp_path / "in", tmp_path / "plain", input=kept)
    folders = make_spec(
        tmp_path / "in", tmp_path / "folders", input=kept, output={"partition_by": ["key"]}
    )
    tables = []
    for spec in (plain, folders):
        snapshot = run(spec)
        assert snapshot is not None
        assert snapshot.n_documents == len(docs), snapshot.reject_reasons
        tables.append(
            open_dataset(spec.output.uri).to_table(columns=["doc_id", "key"]).sort_by("doc_id")
        )
    assert tables[0].equals(tables[1])


def test_several_partition_columns_nest_in_the_order_of_the_spec(tmp_path: Path) -> None:
    docs = [{"id": str(i), "text": f"{i}", "a": f"a{i % 2}", "b": f"b{i % 3}"} for i in range(12)]
    write_shard(tmp_path / "in/a.jsonl", docs)
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["a", "b"]},
        output={"partition_by": ["b", "a"]},
    )
    run(spec, HashEngine())
    folders = {
        str(path.parent.relative_to(tmp_path / "out/data")) for path in data_files(tmp_path / "out")
    }
    assert folders == {f"b=b{i % 3}/a=a{i % 2}" for i in range(6)}
    by_duckdb = duckdb.sql(
        f"select doc_id, a, b from read_parquet('{tmp_path}/out/data/**/*.parquet', "
        "hive_partitioning=true)"
    ).fetchall()
    assert sorted(by_duckdb) == sorted((doc["id"], doc["a"], doc["b"]) for doc in docs)


def test_any_partition_value_reads_back_equal_from_s3(s3: Any, tmp_path: Path) -> None:
    docs = [{"id": str(i), "text": f"{i}", "lang": value} for i, value in enumerate(VALUES)]
    write_shard(tmp_path / "in/a.jsonl", docs)
    options = {"partition_by": ["lang"], "storage_options": s3.storage_options}
    run(make_spec(tmp_path / "in", s3.uri, input={"keep_columns": ["lang"]}, output=options))
    table = open_dataset(s3.uri, storage_options=s3.storage_options).to_table(
        columns=["doc_id", "lang"]
    )
    assert {row["doc_id"]: row["lang"] for row in table.to_pylist()} == {
        doc["id"]: doc["lang"] for doc in docs
    }
    ids, vectors = read_vectors(s3.uri, storage_options=s3.storage_options)
    assert (len(ids), vectors.shape) == (len(docs), (len(docs), DIM))
