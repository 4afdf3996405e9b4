"""What a URI of the input names, and what is passed over with a word.

Oracle: the names and bytes that the test wrote.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from pipeline.errors import InputError, SpecError
from pipeline.read.input.passed_over import PassedOver, sentence
from pipeline.read.input.shards import list_shards, open_shard

ODD_NAMES = ["a[1].jsonl", "a[1-3]b?.jsonl", "what?.jsonl", "a *.jsonl", "{a,b}.jsonl", "*.jsonl"]


def paths(shards: list[Any]) -> list[str]:
    return [shard.uri.removeprefix("file://") for shard in shards]


def content(shards: list[Any]) -> list[bytes]:
    contents = []
    for shard in shards:
        with open_shard(shard, {}) as file:
            contents.append(file.read())
    return contents


@pytest.fixture
def memory() -> Any:
    """A store with keys, where no folder exists by itself."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_exact_name_is_that_object_and_no_pattern(tmp_path: Path, name: str) -> None:
    """Beside it lie files that it would match as a pattern."""
    write(tmp_path, name, "a1.jsonl", "a2bc.jsonl", "whats.jsonl", "a b.jsonl", "a.jsonl")
    assert content(list_shards([f"{tmp_path}/{name}"], {})) == [name.encode()]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_exact_key_of_a_store_is_that_object(memory: Any, name: str) -> None:
    for key in (name, "a1.jsonl", "a2bc.jsonl", "whats.jsonl", "a b.jsonl", "a.jsonl"):
        memory.pipe_file(f"/lake/{key}", key.encode())
    assert content(list_shards([f"memory://lake/{name}"], {})) == [name.encode()]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_characters_a_name_has_it_is_read_by_that_name(
    tmp_path: Path, memory: Any, seed: int
) -> None:
    """Many names beside each other, which match one another as patterns."""
    choose = random.Random(seed).choice
    characters = "ab12[]?*{}!- ~%#&+=,;@$'\"\\^`|()日é._"
    for _ in range(8):
        steps = ["".join(choose(characters) for _ in range(choose(range(1, 6)))) for _ in "ab"]
        name = "/".join([f"a{steps[0]}"[: choose([0, 6])], f"{steps[1]}.jsonl"]).strip("/")
        write(tmp_path, name)
        memory.pipe_file(f"/lake/{name}", name.encode())
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        name = str(path.relative_to(tmp_path))
        for uri in (str(path), path.as_uri(), f"memory://lake/{name}"):
            assert content(list_shards([uri], {})) == [name.encode()]


def test_an_exact_folder_is_that_folder_also_below_a_pattern(tmp_path: Path) -> None:
    write(tmp_path, "[2024]/a.jsonl", "[2024]/b.csv", "2/c.jsonl", "0/d.jsonl")
    assert paths(list_shards([f"{tmp_path}/[2024]"], {})) == [
        f"{tmp_path}/[2024]/a.jsonl",
        f"{tmp_path}/[2024]/b.csv",
    ]
    assert paths(list_shards([f"{tmp_path}/[2024]/*.jsonl"], {})) == [f"{tmp_path}/[2024]/a.jsonl"]
    assert paths(list_shards([f"{tmp_path}/[02]/*.jsonl"], {})) == [
        f"{tmp_path}/0/d.jsonl",
        f"{tmp_path}/2/c.jsonl",
    ]


def test_percent_encoded_and_localhost_uris_name_the_same_file(tmp_path: Path) -> None:
    write(tmp_path, "a b 100%.jsonl")
    path = tmp_path / "a b 100%.jsonl"
    spellings = [str(path), path.as_uri(), path.as_uri().replace("file://", "file://localhost")]
    assert paths(list_shards(spellings, {})) == [str(path)]


def test_every_object_of_a_folder_that_is_no_shard_is_counted_by_kind(tmp_path: Path) -> None:
    read = ["a.jsonl", "b.json", "c.json.gz", "d.jsonl.gzip", "e.csv.zstd", "f.parq", "sub/g.pq"]
    write(tmp_path, *read)
    write(tmp_path, "readme.md", "x.zip", "y.tar.gz", "sub/z.md", "LICENSE", "t.parquet.gz")
    write(tmp_path, "_SUCCESS", ".a.jsonl.crc", "_temporary/h.jsonl", "a.jsonl.md5")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "dead.jsonl").symlink_to("nowhere")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    passed_over = PassedOver()
    shards = list_shards([str(tmp_path)], {}, "auto", passed_over)
    assert paths(shards) == sorted(f"{tmp_path}/{name}" for name in read)
    summary = passed_over.summary()
    assert {kind: facts["n_objects"] for kind, facts in summary.items()} == {
        "unknown suffix": 5,
        "compressed Parquet": 1,
        "hidden": 3,
        "checksum": 1,
        "not a file": 3,
    }
    assert summary["unknown suffix"]["suffixes"] == {
        ".md": 2,
        ".tar.gz": 1,
        ".zip": 1,
        "no suffix": 1,
    }
    assert summary["unknown suffix"]["examples"][0] == f"file://{tmp_path}/LICENSE"
    suffixes = ".md 2, .tar.gz 1, .zip 1, no suffix 1"
    words = f"5 with an unknown suffix ({suffixes}): LICENSE, readme.md, z.md, …"
    assert words in sentence(summary)


def test_what_another_uri_names_exactly_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "readme.md")
    for uris in (
        [str(tmp_path), f"{tmp_path}/readme.md"],
        [f"{tmp_path}/readme.md", str(tmp_path)],
    ):
        passed_over = PassedOver()
        assert len(list_shards(uris, {}, "auto", passed_over)) == 2
        assert passed_over.summary() == {}


def test_a_given_format_reads_every_suffix_and_no_folder_marker(memory: Any) -> None:
    """As the S3 console, Hadoop and Azure's tools make them."""
    markers = ["wiki/", "wiki_$folder$", "wiki/AA"]
    for key, data in {"wiki/AA/wiki_00": b"x", **dict.fromkeys(markers, b"")}.items():
        memory.store[f"/lake/{key}"] = MemoryFile(memory, f"/lake/{key}", data)
    passed_over = PassedOver()
    shards = list_shards(["memory://lake"], {}, "jsonl", passed_over)
    assert [shard.uri for shard in shards] == ["memory:///lake/wiki/AA/wiki_00"]
    assert set(passed_over.summary()) == {"folder marker"}


def test_folders_that_a_pattern_matches_are_named_and_not_entered(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "2024/b.jsonl", "2025/c.jsonl")
    passed_over = PassedOver()
    assert paths(list_shards([f"{tmp_path}/*"], {}, "auto", passed_over)) == [f"{tmp_path}/a.jsonl"]
    assert passed_over.summary()["folder that a pattern matches"]["n_objects"] == 2
    passed_over = PassedOver()
    assert len(list_shards([f"{tmp_path}/**"], {}, "auto", passed_over)) == 3
    assert passed_over.summary() == {}
    with pytest.raises(SpecError, match=r"matches only folders: 2024, 2025\)\. .*ends in /\*\*"):
        list_shards([f"{tmp_path}/20*"], {})


def test_a_name_that_is_not_utf8_costs_itself(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    with open(os.fsencode(tmp_path) + b"/\x93\xfa\x96\x7b.jsonl", "wb") as file:
        file.write(b"x")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with open(os.fsencode(tmp_path) + b"/\xff/b.jsonl", "wb") as file:
        file.write(b"x")
    passed_over = PassedOver()
    for uri in (str(tmp_path), f"{tmp_path}/**"):
        assert paths(list_shards([uri], {}, "auto", passed_over)) == [f"{tmp_path}/a.jsonl"]
    assert passed_over.summary()["name is not UTF-8"]["n_objects"] >= 2
    sentence(passed_over.summary()).encode()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (
            "in/*.txt",
            r"no name matches the pattern, and the folder file://.*/in holds a\.md, b\.zip",
        ),
        (
            "nowhere/*.txt",
            "no name matches the pattern, and the folder .*/nowhere is empty or does",
        ),
        (
            "in",
            r"/in: no input found there \(2 objects, none of a known format: a\.md, b\.zip; known",
        ),
        ("in", r"suffixes are \.jsonl .*input\.format"),
        (
            "nowhere",
            r"/nowhere: no input found there \(it cannot be listed: nothing has this name",
        ),
        ("in/a.md,in/b.zip", r"several names are written as a list: \[a, b\]"),
        ("pipe", "/pipe: no input found there .* neither a file nor a folder"),
        ("empty", r"/empty: no input found there \(the folder is empty"),
    ],
)
def test_where_nothing_is_found_the_message_says_where_it_looked_and_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, words: str
) -> None:
    write(tmp_path, "in/a.md", "in/b.zip")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=words) as caught:
        list_shards([uri], {})
    assert "Error" not in str(caught.value)  # no class of Python
    assert "Check input.uri" in str(caught.value)


TABLES = {
    "Delta": "_delta_log/00000000000000000000.json",
    "Iceberg": "metadata/00000-0b1f.metadata.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Lance": "_versions/1.manifest",
    "corpus-embed": "_meta/runs/0f/spec.yaml",
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    "pattern",
    [
        *("lake/t", "lake/t/", "lake", "lake/t/lang=ja", "lake/t/data", "lake/*/*.parquet"),
        *("lake/t/*.parquet", "lake/**/*.parquet", "lake/t/lang=*/*.parquet"),
        "lake/t/data/*.parquet",
    ],
)
def test_a_folder_that_is_a_table_is_refused_by_name(
    tmp_path: Path, memory: Any, kind: str, pattern: str
) -> None:
    names = ["t/a.parquet", "t/lang=ja/b.parquet", "t/data/c.parquet", f"t/{TABLES[kind]}"]
    write(tmp_path / "lake", *names, "other/d.parquet")
    for name in [*names, "other/d.parquet"]:
        memory.pipe_file(f"/lake/{name}", b"x")
    if kind == "corpus-embed" and pattern in ("lake/*/*.parquet", "lake/t/*.parquet"):
        pytest.skip("an output has no files there")
    for uri in (f"{tmp_path}/{pattern}", f"memory://{pattern}"):
        with pytest.raises(SpecError, match=f"/lake/t is an? .*{kind}.* folder, and name that"):
            list_shards([uri], {})
        assert list_shards([uri.replace(pattern, "lake/t/a.parquet")], {})  # somebody named it
        assert list_shards([uri.replace(pattern, "lake/other")], {})


def test_folders_with_names_like_those_of_tables_are_read(tmp_path: Path) -> None:
    write(tmp_path, "metadata/a.jsonl", "x/metadata/b.json", "data/_versions/readme", "_meta/x")
    assert len(list_shards([str(tmp_path)], {})) == 2
    assert len(list_shards([f"{tmp_path}/*/*"], {})) == 1


def test_two_names_of_one_file_are_one_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "in/a.jsonl", "in/sub/b.jsonl")
    (tmp_path / "in/0-link.jsonl").symlink_to("a.jsonl")
    os.link(tmp_path / "in/sub/b.jsonl", tmp_path / "in/sub/c.jsonl")
    (tmp_path / "linked").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    expected = [f"{tmp_path}/in/a.jsonl", f"{tmp_path}/in/sub/b.jsonl"]
    for uris in (
        ["in"],
        ["linked", "in"],
        ["in", "linked"],
        ["in", "in/a.jsonl", "./in//a.jsonl", f"//{tmp_path}/in/../in/a.jsonl"],
        ["linked/0-link.jsonl", "in/a.jsonl", "in/sub/*.jsonl"],
        [(tmp_path / "in").as_uri(), "in/**"],
    ):
        assert paths(list_shards(uris, {})) == expected
    passed_over = PassedOver()
    list_shards(["in", "linked"], {}, "auto", passed_over)
    assert passed_over.summary()["second name of a shard"]["n_objects"] == 6
    # a name alone stays as it was written, also through a link: outputs know it by that
    assert paths(list_shards(["linked/sub/c.jsonl"], {})) == [f"{tmp_path}/linked/sub/c.jsonl"]


@pytest.mark.parametrize("folds", [True, False])
def test_doubled_slashes_of_a_store_are_a_second_name_only_where_the_version_is_the_same(
    memory: Any, folds: bool
) -> None:
    """As on SeaweedFS, which folds them, and on S3, where they are other keys."""
    for key in ("a.jsonl", "/a.jsonl"):
        memory.store[f"/lake/{key}"] = MemoryFile(memory, f"/lake/{key}", b"x")
    created = memory.store["/lake/a.jsonl"].created
    if folds:
        memory.store["/lake//a.jsonl"].created = created
    shards = list_shards(["memory://lake//a.jsonl", "memory://lake/a.jsonl"], {})
    uris = ["memory:///lake//a.jsonl", "memory:///lake/a.jsonl"]
    assert [shard.uri for shard in shards] == (uris[1:] if folds else uris)


def hub_cache(root: Path) -> Path:
    """A repository as huggingface_hub lays it out: files are links to blobs."""
    repository = root / "datasets--x--y"
    snapshot = repository / "snapshots/abc/data"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number in range(2):
        (repository / f"blobs/b{number}").write_text(f"blob {number}")
        (snapshot / f"{number}.jsonl").symlink_to(f"../../../blobs/b{number}")
    return repository


def test_links_inside_the_hubs_cache_are_files(tmp_path: Path) -> None:
    repository = hub_cache(tmp_path)
    for place in ("snapshots/abc/data", "snapshots/abc", "snapshots/abc/data/*.jsonl", ""):
        shards = list_shards([f"{repository}/{place}"], {})
        assert [path.rpartition("/")[2] for path in paths(shards)] == ["0.jsonl", "1.jsonl"]
        assert content(shards) == [b"blob 0", b"blob 1"]


@pytest.mark.parametrize("target", ["../../../refs/main", "../../../../private", "/etc/hostname"])
def test_a_link_out_of_the_blobs_of_its_own_repository_is_refused_by_name(
    tmp_path: Path, target: str
) -> None:
    repository = hub_cache(tmp_path)
    (tmp_path / "private").write_text("not yours")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc/data/x.jsonl").symlink_to(target)
    with pytest.raises(SpecError, match=r"data/x\.jsonl is a link to .*, outside of"):
        list_shards([f"{repository}/snapshots/abc/data"], {})


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("closed", ["file", "folder", "folder of a pattern", "root", "exact"])
def test_what_this_user_may_not_open_is_named_while_planning(
    open_folder: Path, closed: str
) -> None:
    write(open_folder, "in/a.jsonl", "in/sub/b.jsonl")
    (open_folder / "in/lost+found").mkdir(0)  # as at the root of a volume
    place = {"file": "in/a.jsonl", "exact": "in/a.jsonl", "root": "in"}.get(closed, "in/sub")
    uri = {"folder of a pattern": "in/**/*.jsonl", "exact": "in/a.jsonl"}.get(closed, "in")
    (open_folder / place).chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may open everything
    try:
        if closed in ("file", "exact"):
            assert list_shards([f"{open_folder}/in/sub"], {})
        with pytest.raises(InputError, match=f"access was refused: .*{place} cannot be opened"):
            list_shards([f"{open_folder}/{uri}"], {})
    finally:
        os.seteuid(user)
        (open_folder / place).chmod(0o755)
