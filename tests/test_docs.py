"""The documents are true: commands, options, links and paths exist, examples run, words match the
code.

Oracle: the command line itself, the files on disk, and execution of every Python and SQL example
against an output of the reader's own making.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer
import typer.cli
import yaml
from typer.core import MARKUP_MODE_KEY

from pipeline import errors
from pipeline.cli.commands import app
from pipeline.job.spec import load_spec, spec_from
from pipeline.read import EXTENSIONS, READERS
from pipeline.storage import schema
from tests import ROOT
from tests.support.outputs import make_spec, run_without_ray, write_shard
from tests.test_layers import FLOOR_OF

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"\bcorpus-embed\s+([a-z]+)\b([^\n`]*)")
OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")


OURS = re.compile(r"^(?:pipeline|tests|docs|jobs|benchmarks|\.ci|\.github)/|^[\w./-]+\.py\b")
"""What a path of the repository looks like between backticks."""
TREE = re.compile(r"^```\npipeline/\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    """Options of each command, as the command line has them."""
    group: Any = typer.main.get_command(app)
    return {
        key: {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for key, command in group.commands.items()
    }


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """An output with the columns of the quickstart, at `out/quickstart` below the folder that is
    returned."""
    folder = tmp_path_factory.mktemp("reader")
    documents = [
        {
            "id": f"d{n}",
            "text": f"{'文書' if n % 2 else 'document'} {n}",
            "lang": "ja" if n % 2 else "en",
            "title": None,
        }
        for n in range(6)
    ]
    write_shard(folder / "in/a.jsonl", documents)
    spec = make_spec(
        str(folder / "in"),
        str(folder / "out/quickstart"),
        minilm_dir,
        input={"keep_columns": ["lang", "title"]},
        output={"partition_by": ["lang"]},
    )
    assert run_without_ray(spec)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_resolves(page: Path) -> None:
    targets = [
        target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target
    ]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def paths_named(page: Path) -> set[str]:
    """Paths of the repository between backticks, without `::test`, and without code blocks."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    words = re.findall(r"`([^`\s]+)`", text)
    return {word.split("::")[0] for word in words if OURS.match(word) and "*" not in word}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_of_the_repository_that_is_named_exists(page: Path) -> None:
    to_be_written = {"pipeline/read/paragraphs.py"}  # the example of docs/extending.md
    missing = {path for path in paths_named(page) - to_be_written if not (ROOT / path).exists()}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_constant_and_class_that_is_named_exists(page: Path) -> None:
    words = re.findall(r"`([A-Z]\w*[A-Z]\w*)`", page.read_text(encoding="utf-8"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    foreign = re.compile(r"(AWS|RAY|HF|PYICEBERG|CHAOS|CORPUS|OPENLINEAGE)_|FLOAT|UINT")
    missing = [
        word for word in words if not foreign.match(word) and not re.search(rf"\b{word}\b", code)
    ]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/design.md"])
def test_the_tree_of_rooms_is_that_of_the_package_in_the_order_of_its_floors(page: str) -> None:
    (tree,) = TREE.findall((ROOT / page).read_text(encoding="utf-8"))
    entries = re.findall(r"^  ([\w.]+)/? +\w.*$", tree, re.MULTILINE)
    assert len(entries) == len(tree.splitlines()), "a room without a phrase"
    assert entries == [*FLOOR_OF, "errors.py"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_option_named_exists(page: Path, commands: dict[str, set[str]]) -> None:
    for command, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
        assert command in commands, f"corpus-embed {command}"
        options = OPTION.findall(re.sub(r'"[^"]*"|#.*', "", rest).split("|")[0])
        assert set(options) <= commands[command], f"corpus-embed {command} {rest.strip()}"


def test_readme_names_every_command(commands: dict[str, set[str]]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(commands) == {command for command, _ in COMMAND.findall(readme)}


def test_the_page_of_commands_is_what_the_command_line_says() -> None:
    page = typer.cli.get_docs_for_click(
        obj=typer.main.get_command(app),
        ctx=typer.Context(typer.main.get_command(app), obj={MARKUP_MODE_KEY: "rich"}),
        name="corpus-embed",
        title="Commands",
    )
    assert (ROOT / "docs/commands.md").read_text("utf-8") == f"{page.strip()}\n", "run make docs"


def test_readme_names_every_make_target_it_uses() -> None:
    targets = set(
        re.findall(
            r"^([a-z-]+):.*?##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    assert (
        set(re.findall(r"\bmake ([a-z-]+)", "\n".join(blocks(ROOT / "README.md", "sh")))) <= targets
    )


def test_the_spec_of_the_readme_is_valid_and_has_the_settings_without_a_default() -> None:
    (block,) = blocks(ROOT / "README.md", "yaml")
    spec = spec_from(yaml.safe_load(block))
    assert (spec.input.uri, spec.output.partition_by) == (
        ("s3://lake/wiki/ja/*.jsonl.gz",),
        ("lang",),
    )


def test_exit_codes_are_those_of_the_errors() -> None:
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("| exit code |")[1].split("\n\n")[0]
    )
    codes = {
        int(code)
        for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
        for code in row.split(", ")
    }
    assert {getattr(errors, error).exit_code for error in errors.__all__} | {0, 130, 143} == codes


def messages() -> str:
    """Every text in the code of the package, a line each, with … for the values that it formats."""
    texts = []
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                values = [getattr(value, "value", None) for value in node.values]
                texts.append("".join(v if isinstance(v, str) else "…" for v in values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_error_of_the_table_of_failures_is_one_that_the_product_raises() -> None:
    table = (ROOT / "docs/operations.md").read_text("utf-8").split("| exit | error |")[1]
    rows = re.findall(r"^\| (\d) \| `(\w+)(?:: ([^`]*))?` \|", table, re.MULTILINE)
    assert len(rows) > 12
    texts_of_the_code = messages()
    for code, error, words in rows:
        assert getattr(errors, error).exit_code == int(code), error
        fragments = re.split(r"…|\bN\b|\b3\b", words)
        assert not [text for text in fragments if text.strip() not in texts_of_the_code], (
            error,
            words,
        )


def test_every_reject_reason_and_column_is_explained() -> None:
    page = (ROOT / "docs/output-format.md").read_text(encoding="utf-8")
    reasons = set(
        re.findall(
            r"^\| `(\w+)` \|", page.split("## Rejects")[1].split("## Records")[0], re.MULTILINE
        )
    )
    assert reasons == set(schema.REASONS)
    columns = schema.rows_schema({}, include_text=True, precision="int8", dimension=8).names
    first_cells = " ".join(re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE))
    assert {column for column in columns if f"`{column}`" not in first_cells} == set()
    assert all(
        type_ in page for type_ in ("int64", "float64", "bool", "date32", "timestamp[us, UTC]")
    )
    assert all(f"`{precision}`" in page for precision in schema.VECTOR_TYPES)


@pytest.mark.parametrize(
    ("page", "number"),
    [
        (page, number)
        for page in (ROOT / "README.md", ROOT / "docs/output-format.md", ROOT / "docs/lake.md")
        for number in range(len(blocks(page, "python")))
    ],
    ids=lambda value: name(value) if isinstance(value, Path) else str(value),
)
def test_reading_examples_run(
    page: Path, number: int, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    example = blocks(page, "python")[number]
    for library in {"faiss", "lance"} & set(re.findall(r"^import (\w+)$", example, re.MULTILINE)):
        pytest.importorskip(library)
    exec(compile(example, name(page), "exec"), names)
    if "index" in names:
        assert (names["index"].ntotal, names["index"].d) == (6, 384)
        assert "nearest" not in names or names["nearest"][0] == names["ids"][0]
    if "table" in names and "lance" in names:
        assert names["table"].count_rows() == 6
        return
    if "vectors" in names:
        assert names["vectors"].shape == (6, 384)
    if "table" in names:
        assert names["table"].num_rows == 6
        assert {"doc_id", "lang", "embedding"} <= set(names["table"].column_names)


def test_the_sql_example_runs(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(output)
    (block,) = blocks(ROOT / "docs/output-format.md", "sql")
    rows = duckdb.connect().execute(block).fetchall()
    assert {lang for _, lang, _ in rows} <= {"ja", "en"}
    # float32 rounding of a norm
    assert all(abs(similarity - 1) < 1e-5 for _, _, similarity in rows)


def test_the_format_of_extending_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bert_mean_dir: Path
) -> None:
    """The new file and its two lines in docs/extending.md, as they stand there, then a whole run
    with that format."""
    (file,) = blocks(ROOT / "docs/extending.md", "python")
    reader, suffix = re.findall(
        r"^\+(.*)$", blocks(ROOT / "docs/extending.md", "diff")[0], re.MULTILINE
    )
    made: dict[str, Any] = {"__name__": "pipeline.read.paragraphs"}
    exec(compile(file, "docs/extending.md", "exec"), made)
    for table, line in ((READERS, reader), (EXTENSIONS, suffix)):
        for key, value in eval("{" + line + "}", made).items():
            monkeypatch.setitem(table, key, value)
    source = tmp_path / "in/a.par"
    source.parent.mkdir()
    source.write_bytes("one paragraph\nof two lines\n\n\n\n二番目の段落\n\nlast".encode())
    out = tmp_path / "out"
    spec = make_spec(
        str(source.parent), str(out), bert_mean_dir, input={"id_column": None, "keep_columns": []}
    )
    snapshot = run_without_ray(spec)
    assert snapshot is not None
    from pipeline.output.dataset import open_dataset

    rows = sorted(
        open_dataset(str(out)).to_table().to_pylist(), key=lambda row: row["source_record"]
    )
    assert [row["text"] for row in rows] == ["one paragraph\nof two lines", "二番目の段落", "last"]
    data = source.read_bytes()
    for row in rows:  # source_record is where the bytes are
        assert data[row["source_record"] :].startswith(row["text"].encode())


@pytest.mark.parametrize("path", JOBS, ids=name)
def test_every_shipped_job_is_a_valid_spec(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem


def links(page: Path) -> Iterator[str]:
    yield from LINK.findall(page.read_text(encoding="utf-8"))


def test_readme_leads_to_every_page() -> None:
    targets = {target for target in links(ROOT / "README.md") if "://" not in target}
    reached = {(ROOT / target).resolve() for target in targets}
    assert {page.resolve() for page in PAGES if page.name != "README.md"} <= reached


def test_the_module_runs_as_the_script_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "schema"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["title"] == "JobSpec"


def test_every_test_that_a_page_names_exists() -> None:
    test_name = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
    named = [pair for page in PAGES for pair in test_name.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 43
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not (ROOT / path).exists()
        or f"\ndef {test}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_fault_has_a_row_and_a_test_or_a_reason() -> None:
    rows = re.findall(
        r"^\| (\d+)\. .*\| (.*) \|$",
        (ROOT / "docs/guarantees.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [int(number) for number, _ in rows] == list(range(1, 44))
    assert all("::" in held or "in work" in held for _, held in rows)
