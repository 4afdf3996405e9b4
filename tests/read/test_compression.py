"""Decompression: everything that can be read comes out before the damage is told. Oracles: the
standard compressors."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard

from pipeline.errors import ShardDamaged
from pipeline.read import READERS, compression, read_span
from pipeline.read.compression import (
    TrailingGarbage,
    decompressed_blocks,
    without_compression_suffix,
)
from pipeline.storage.lineage import Shard, Span
from tests.support.specs import input_spec

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".gzip": lambda data: gzip.compress(data, mtime=0),
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}

ALL = pytest.mark.parametrize("suffix", list(COMPRESSORS))


def content(n_lines: int = 30_000) -> bytes:
    numbers = random.Random(7)
    return b"".join(
        b'{"text": "line %d %x"}\n' % (i, numbers.getrandbits(64)) for i in range(n_lines)
    )


def blocks(data: bytes, suffix: str) -> tuple[bytes, ShardDamaged | None]:
    out = b""
    try:
        for block in decompressed_blocks(io.BytesIO(data), "a.jsonl" + suffix):
            assert 0 < len(block) <= 1 << 20
            out += block
    except ShardDamaged as error:
        return out, error
    return out, None


@ALL
def test_whole_data_comes_back(suffix: str) -> None:
    data = content()
    assert blocks(COMPRESSORS[suffix](data), suffix) == (data, None)
    assert blocks(COMPRESSORS[suffix](b""), suffix) == (b"", None)
    assert blocks(b"", suffix) == (b"", None)


@ALL
@pytest.mark.parametrize("padding", [b"", b"\0" * 8])
def test_all_members_are_read(suffix: str, padding: bytes) -> None:
    members = [content(50), b"", b"x" * 3_000_000, content(7)]
    data = padding.join([*map(COMPRESSORS[suffix], members), b""])
    assert blocks(data, suffix) == (b"".join(members), None)


@ALL
def test_members_may_begin_at_any_place_of_a_read(suffix: str) -> None:
    class OneByte(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(1)

    data = COMPRESSORS[suffix](b"one\n") + COMPRESSORS[suffix](b"two\n")
    assert b"".join(decompressed_blocks(OneByte(data), "a" + suffix)) == b"one\ntwo\n"


@ALL
@pytest.mark.faults
def test_truncated_data_is_delivered_up_to_the_cut_and_then_told(suffix: str) -> None:
    data = content()
    packed = COMPRESSORS[suffix](data)
    for n_kept in (len(packed) - 1, len(packed) - 9, len(packed) // 2, 5):
        out, error = blocks(packed[:n_kept], suffix)
        assert error is not None
        assert error.position == len(out)
        assert data.startswith(out)
    assert len(blocks(packed[:-9], suffix)[0]) > len(data) * 0.5


@ALL
@pytest.mark.faults
def test_corrupt_data_is_told(suffix: str) -> None:
    packed = bytearray(COMPRESSORS[suffix](content()))
    for place in (len(packed) // 2, len(packed) - 6 if suffix == ".gz" else 2 * len(packed) // 3):
        broken = bytearray(packed)
        broken[place] ^= 0x55
        out, error = blocks(bytes(broken), suffix)
        assert error is not None
        assert error.position == len(out)


@pytest.mark.faults
def test_a_wrong_gzip_checksum_costs_no_data() -> None:
    data = content()
    packed = bytearray(gzip.compress(data))
    packed[-8] ^= 1
    out, error = blocks(bytes(packed), ".gz")
    assert out == data
    assert error is not None


@ALL
@pytest.mark.faults
def test_garbage_after_complete_data_is_told_and_costs_no_record(suffix: str) -> None:
    data = content(10).rstrip(b"\n")
    packed = COMPRESSORS[suffix](data) + b"garbage"
    out, error = blocks(packed, suffix)
    assert out == data
    assert isinstance(error, TrailingGarbage)
    span = Span(shard=Shard(uri="a.jsonl" + suffix, etag="e", size_bytes=len(packed)))
    tables = read_span(
        READERS["jsonl"], io.BytesIO(packed), span, input_spec("text", None, {}, 999)
    )
    reasons = [reason for table in tables for reason in table["reason"].to_pylist()]
    assert reasons == [None] * 10 + ["damaged_shard"]


@ALL
@pytest.mark.faults
def test_a_truncated_shard_keeps_its_whole_records_and_ends_with_one_reject_at_the_byte(
    suffix: str,
) -> None:
    data = content()
    packed = COMPRESSORS[suffix](data)[:-20]
    span = Span(shard=Shard(uri="a.jsonl" + suffix, etag="e", size_bytes=len(packed)))
    spec = input_spec("text", None, {}, 999)
    rows = [
        row
        for table in read_span(READERS["jsonl"], io.BytesIO(packed), span, spec)
        for row in table.to_pylist()
    ]
    readable = blocks(packed, suffix)[0]
    whole_lines = readable[: readable.rfind(b"\n") + 1].splitlines()
    assert [row["text"] for row in rows[:-1]] == [line.decode()[10:-2] for line in whole_lines]
    assert rows[-1]["reason"] == "damaged_shard"
    assert rows[-1]["source_record"] == len(readable)
    assert "ends in the middle" in rows[-1]["detail"]


@pytest.mark.thorough
@ALL
def test_a_bomb_is_read_in_bounded_memory(suffix: str) -> None:
    n_bytes = 48 << 20
    packed = COMPRESSORS[suffix](bytes(n_bytes))
    tracemalloc.start()
    n_out = sum(map(len, decompressed_blocks(io.BytesIO(packed), "a" + suffix)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_out == n_bytes
    # zstd: 16 MiB, joined once
    assert peak_bytes < (40 << 20 if suffix.startswith(".zst") else 12 << 20)


def test_everything_below_the_limit_of_a_bomb_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_RATIO", 1)
    monkeypatch.setattr(compression, "_FREE_BYTES", 1000)
    out, error = blocks(gzip.compress(bytes(300)) * 5, ".gz")
    assert error is not None
    assert "may be a decompression bomb" in str(error)
    assert (len(out), error.position) == (1000, 1000)


def test_zstd_skippable_frames_are_skipped() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    packed = skippable + zstandard.compress(b"one") + skippable + zstandard.compress(b"two")
    assert blocks(packed, ".zst") == (b"onetwo", None)


def test_only_a_compression_suffix_is_taken_off() -> None:
    assert without_compression_suffix("s3://b/a.jsonl.GZ") == "s3://b/a.jsonl"
    assert without_compression_suffix("s3://b/a.jsonl") == "s3://b/a.jsonl"


def dictionary() -> zstandard.ZstdCompressionDict:
    samples = [content(200)[start : start + 400] for start in range(0, 8000, 100)]
    return zstandard.train_dictionary(4000, samples)


def skippable(data: bytes, number: int = 13) -> bytes:
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_dictionary_in_the_first_frame_is_that_of_all_frames(is_packed: bool) -> None:
    words = dictionary()
    compressor = zstandard.ZstdCompressor(dict_data=words)
    members = [content(20), b"", content(3), b"other"]
    frames = [compressor.compress(member) for member in members[:-1]]
    frames.append(zstandard.compress(members[-1]))  # one without a dictionary
    first = words.as_bytes()
    head = skippable(zstandard.compress(first) if is_packed else first)
    assert blocks(head + b"".join(frames), ".warc.zst") == (b"".join(members), None)


@pytest.mark.faults
@pytest.mark.parametrize(
    "head",
    [
        b"",
        skippable(b"no dictionary"),
        skippable(b""),
        skippable(zstandard.compress(b"no dictionary")),
        skippable(zstandard.compress(b"x" * 100)[:-3]),
        skippable((0xEC30A437).to_bytes(4, "little") + b"x" * 50),
    ],
)
def test_a_frame_that_is_no_dictionary_is_skipped(head: bytes) -> None:
    assert blocks(head + zstandard.compress(b"text"), ".zst") == (b"text", None)
    needs_words = zstandard.ZstdCompressor(dict_data=dictionary()).compress(content(9))
    out, error = blocks(head + needs_words, ".zst")
    assert out == b""
    assert "ictionary" in str(error)


@pytest.mark.faults
def test_a_dictionary_is_bounded() -> None:
    bomb = skippable(zstandard.compress(bytes(1 << 30)))
    tracemalloc.start()
    assert blocks(bomb + zstandard.compress(b"text"), ".zst") == (b"text", None)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


@ALL
@pytest.mark.faults
@pytest.mark.parametrize("suffix_inside", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_data_that_is_not_what_the_suffix_says_is_named(suffix: str, suffix_inside: str) -> None:
    data = COMPRESSORS[suffix_inside](content(5)) if suffix_inside else content(5)
    if suffix.startswith(suffix_inside or "no"):
        return
    out, error = blocks(data, suffix)
    assert out == b""
    assert error is not None
    assert error.position == 0
    name = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2", "": "is not compressed"}
    assert name[suffix_inside] in str(error).partition("data; it ")[2]
