"""`import pipeline` keeps its promises: the names, the lightness, `plan` and `run` as functions.

Oracle: fresh interpreters, since this process has imported everything already.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

import pipeline
from pipeline import errors
from pipeline.cli.commands import invoke
from tests import ROOT
from tests.support.outputs import make_spec, run_without_ray, write_shard
from tests.support.processes import printed_by

NAMES = {"JobSpec", "changes", "load_spec", "open_dataset", "plan", "read_vectors", "run"}
OF_COMMANDS = {
    "files": "uri snapshot=",
    "rejects": "uri reason= shard= n= snapshot= texts= source_options=",
    "export": "uri destination to= columns= index= snapshot= destination_options=",
    "search": "uri text k= snapshot= prompt= prompt_name= model_path=",
    "trace": "uri row snapshot= source_options=",
    "verify": "uri snapshot= sample= seed= model_path= need_model= source_options=",
    "report": "uri format= snapshot= sample= seed= near= read_sources= source_options= made=",
    "diff": "uri since until keys=",
    "compact": "uri target_bytes=",
    "vacuum": "uri keep_snapshots= older_than= delete=",
}
"""What the functions of the command line take, `=` behind what is passed by name alone; after it,
all take `storage_options=`."""


def fresh(code: str) -> object:
    """What `code` prints as JSON in an interpreter that has imported nothing."""
    return json.loads(printed_by(code).splitlines()[-1])


def test_the_public_names_are_these_and_every_one_resolves() -> None:
    assert set(pipeline.__all__) == NAMES | OF_COMMANDS.keys() | set(errors.__all__)
    assert pipeline.__all__ == sorted(pipeline.__all__)
    assert all(getattr(pipeline, name) is not None for name in pipeline.__all__)
    assert set(pipeline.__all__) <= set(dir(pipeline))


def test_the_version_is_that_of_the_project_and_types_come_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pipeline.__version__ == project["project"]["version"]
    package_data = project["tool"]["setuptools"]["package-data"]["pipeline"]
    assert all([*(ROOT / "pipeline").glob(name)] for name in package_data)
    assert "py.typed" in package_data


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'embed_everything'"):
        _ = pipeline.embed_everything


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = [
        "torch",
        "ray",
        "transformers",
        "pyarrow",
        "numpy",
        "pydantic",
        "fsspec",
        "yaml",
        "rich",
        "typer",
    ]
    code = (
        f"import pipeline, json, sys; print(json.dumps([n for n in {heavy} if n in sys.modules]))"
    )
    assert fresh(code) == []


@pytest.mark.parametrize(
    "statements",
    [
        "import pipeline",
        "import pipeline.driver.run, pipeline.driver.planning.plan",
        "import pipeline.cli.commands",
    ],
)
def test_plan_and_run_are_functions_whatever_was_imported_before(statements: str) -> None:
    code = (
        f"{statements}\nimport json\n"
        "print(json.dumps([type(pipeline.plan).__name__, type(pipeline.run).__name__]))"
    )
    assert fresh(code) == ["function", "function"]


def test_a_plan_with_a_device_needs_neither_ray_nor_torch(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    spec = make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, runtime={"device": "cpu"}
    )
    (tmp_path / "job.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    code = (
        f"import json, sys, pipeline\nplan = pipeline.plan({str(tmp_path / 'job.yaml')!r})\n"
        "heavy = [name for name in ('ray', 'torch') if name in sys.modules]\n"
        "print(json.dumps([len(plan.shards), len(plan.todo), heavy]))"
    )
    assert fresh(code) == [1, 1, []]
    assert not (tmp_path / "out").exists()


def test_a_spec_can_be_an_object_a_mapping_or_a_path(tmp_path: Path, bert_mean_dir: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    spec = make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, runtime={"device": "cpu"}
    )
    path = tmp_path / "job.yaml"
    path.write_text(spec.to_yaml(), encoding="utf-8")
    plans = [pipeline.plan(form) for form in (spec, spec.model_dump(mode="json"), str(path), path)]
    assert len({plan.run_id for plan in plans}) == 1


def test_a_wrong_spec_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(pipeline.SpecError, match="input"):
        pipeline.plan({"name": "x"})
    with pytest.raises(pipeline.SpecError, match="cannot be read"):
        pipeline.run(tmp_path / "missing.yaml")


@pytest.mark.parametrize("name", OF_COMMANDS)
def test_a_function_of_a_command_takes_the_output_first_and_options_by_name(name: str) -> None:
    signature = inspect.signature(getattr(pipeline, name))
    parameters = [
        parameter.name + "=" * (parameter.kind is inspect.Parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
    ]
    assert " ".join(parameters) == f"{OF_COMMANDS[name]} storage_options="
    parts = [*(p.annotation for p in signature.parameters.values()), signature.return_annotation]
    assert inspect.Signature.empty not in parts


def test_the_functions_of_the_commands_give_what_the_commands_print(
    tmp_path: Path, bert_mean_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    spec = make_spec(str(tmp_path / "in"), out, bert_mean_dir, input={"keep_columns": []})
    for n in range(2):
        name, documents = f"{n}.jsonl", [{"id": f"{n}", "text": f"text {n}"}, {"id": f"bad {n}"}]
        write_shard(tmp_path / "in" / name, documents)
        run_without_ray(spec)

    def printed(*command: str) -> dict[str, Any]:
        capsys.readouterr()
        assert invoke([command[0], out, *command[1:], "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert pipeline.diff(out, 1, 2).n_upserts == printed("diff", "1", "2")["n_upserts"] == 1
    keys = pipeline.diff(out, 0, keys=True).upserts
    assert keys is not None
    assert sorted(keys["doc_id"].to_pylist()) == ["0", "1"]
    (hit,) = pipeline.search(out, "text 1", k=1)
    assert [dataclasses.asdict(hit)] == printed("search", "text 1", "-k", "1")["hits"]
    traced = pipeline.trace(out, "1")
    assert (traced.ok, traced.rows[0].source_text) == (True, "text 1")
    assert printed("trace", "1")["rows"][0]["part_id"] == traced.rows[0].part_id
    assert pipeline.verify(out, sample=2).ok
    assert pipeline.files(out).uris == [file["uri"] for file in printed("files")["files"]]
    assert pipeline.rejects(out).counts == printed("rejects")["counts"] == {"missing_text": 2}
    assert pipeline.export(out, str(tmp_path / "npy"), to="npy").n_rows == 2
    compaction = pipeline.compact(out)
    assert (compaction.snapshot, compaction.n_files) == (3, 1)
    plan = pipeline.vacuum(out, keep_snapshots=1, older_than=datetime.timedelta(0))
    assert not plan.deleted
    old = [str(path) for path in plan.paths]
    assert sorted(printed("vacuum", "--keep", "1", "--older-than", "0s")["paths"]) == sorted(old)


@pytest.mark.usefixtures("ray_local")
def test_run_then_read(
    tmp_path: Path,
    bert_mean_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pipeline.driver.cluster.watch.STALLED_S", 0.0)
    write_shard(
        tmp_path / "in/a.jsonl", [{"id": str(n), "text": f"text number {n}"} for n in range(5)]
    )
    out = str(tmp_path / "out")
    spec = make_spec(
        str(tmp_path / "in"), out, bert_mean_dir, runtime={"device": "cpu"}, publish={"delta": True}
    )
    result = pipeline.run(spec)
    assert result.embedded
    assert repr(result) == (
        f"<Result: snapshot 1 of {out}, 5 rows from 5 documents; this run: 5 embedded>"
    )
    assert "waiting for" in caplog.text  # without a watch, the log says so
    # published after the commit
    assert (tmp_path / "out/_delta_log/00000000000000000000.json").exists()
    ids, vectors = pipeline.read_vectors(out)
    assert sorted(ids.to_pylist()) == [str(n) for n in range(5)]
    assert vectors.shape[0] == 5
    assert isinstance(pipeline.open_dataset(out), ds.Dataset)
