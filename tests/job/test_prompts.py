"""What goes in front of a document is what encode_document puts there, a job can say otherwise, and
a model that is known to want a prompt is never left without a word."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SpecError
from pipeline.job.resolve import resolve
from tests.support.outputs import make_spec

REGISTERED: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"prompts": {"document": "d: "}}, "d: "),
    ({"prompts": {"query": "q: ", "document": "d: ", "passage": "p: "}}, "d: "),
    ({"prompts": {"query": "q: "}}, None),
    ({"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}, None),
    ({"prompts": {"text": "t: ", "document": "d: "}, "default_prompt_name": "text"}, "d: "),
    ({"prompts": {"document": "検索文書: ", "query": "検索クエリ: "}}, "検索文書: "),
]
"""config_sentence_transformers.json -> the prompt."""


def directory(source: Path, target: Path, config: dict[str, Any]) -> Path:
    shutil.copytree(source, target)
    file = target / "config_sentence_transformers.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    before = {k: v for k, v in before.items() if k not in ("prompts", "default_prompt_name")}
    file.write_text(json.dumps({**before, **config}))
    return target


def job_of(path: Path, tmp_path: Path, **choice: Any) -> Any:
    return resolve(make_spec("in", str(tmp_path / "out"), str(path), model=choice), "cpu")


@pytest.mark.parametrize(("config", "prompt"), REGISTERED, ids=str)
def test_the_prompt_is_that_of_encode_document(
    config: dict[str, Any], prompt: str | None, bert_mean_dir: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    path = directory(bert_mean_dir, tmp_path / "model", config)
    st = SentenceTransformer(str(path), device="cpu")
    expected = st.encode([(prompt or "") + "a text"], prompt="")
    np.testing.assert_array_equal(st.encode_document(["a text"]), expected)
    job = job_of(path, tmp_path)
    assert job.prompt == prompt
    assert job.identity["model"]["prompt"] == prompt


@pytest.mark.parametrize(
    ("config", "prompt", "source"),
    [
        ({"prompts": {"passage": "p: ", "query": "q: "}}, "p: ", "the model's prompt 'passage'"),
        ({"prompts": {"corpus": "c: "}}, "c: ", "the model's prompt 'corpus'"),
        ({"prompts": {"passage": "p: ", "document": ""}}, "p: ", "the model's prompt 'passage'"),
        (
            {"prompts": {"text": "t: "}, "default_prompt_name": "text"},
            "t: ",
            "the model's default prompt 'text'",
        ),
    ],
)
def test_other_names_for_documents_and_the_default_are_taken(
    config: dict[str, Any], prompt: str, source: str, bert_mean_dir: Path, tmp_path: Path
) -> None:
    """sentence-transformers 6.2 fills `document` with an empty prompt before it looks for these, so
    its encode_document never reaches the names that it documents."""
    job = job_of(directory(bert_mean_dir, tmp_path / "model", config), tmp_path)
    assert (job.prompt, job.prompt_source) == (prompt, source)


@pytest.mark.parametrize(
    ("choice", "prompt", "source"),
    [
        ({"prompt": "own: "}, "own: ", "model.prompt"),
        ({"prompt": ""}, None, "model.prompt"),
        ({"prompt_name": "query"}, "q: ", "model.prompt_name"),
        ({"prompt_name": None}, "d: ", "the model's prompt 'document'"),
        ({"prompt_name": "auto"}, "d: ", "the model's prompt 'document'"),
    ],
)
def test_a_job_can_say_otherwise(
    choice: dict[str, Any], prompt: str | None, source: str, bert_mean_dir: Path, tmp_path: Path
) -> None:
    config = {"prompts": {"query": "q: ", "document": "d: "}}
    job = job_of(directory(bert_mean_dir, tmp_path / "model", config), tmp_path, **choice)
    assert (job.prompt, job.prompt_source) == (prompt, source)


def test_a_name_that_is_not_registered_is_refused(bert_mean_dir: Path, tmp_path: Path) -> None:
    path = directory(bert_mean_dir, tmp_path / "model", {"prompts": {"query": "q: "}})
    with pytest.raises(SpecError, match=r"'passage': the model has query\. Name one of them"):
        job_of(path, tmp_path, prompt_name="passage")
    path = directory(bert_mean_dir, tmp_path / "bare", {})
    with pytest.raises(SpecError, match=r"'passage': the model registers none: write the text"):
        job_of(path, tmp_path, prompt_name="passage")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("multilingual-e5-large", "passage: "),
        ("e5-base-v2", "passage: "),
        ("ruri-v3-310m", "検索文書: "),
        ("ruri-large", "文章: "),
        ("sarashina-embedding-v2-1b", "text: "),
        ("GLuCoSE-base-ja-v2", "passage: "),
        ("embeddinggemma-300m", "title: none | text: "),
        ("Multilingual_E5_Large", "passage: "),
        ("RURI_V3_310M", "検索文書: "),
        ("my.ruri.v2.base", "文章: "),
        ("someone--e5-small-ja/snapshots/abc", "passage: "),
    ],
)
def test_a_model_that_wants_a_prompt_and_registers_none_is_named_and_nothing_is_rewritten(
    name: str, prompt: str, bert_mean_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = directory(bert_mean_dir, tmp_path / name, {})
    assert job_of(path, tmp_path).prompt is None
    assert repr(prompt) in caplog.text
    caplog.clear()
    job_of(path, tmp_path, prompt="")
    job_of(path, tmp_path, prompt=prompt)
    assert not caplog.records


@pytest.mark.parametrize(
    ("card", "prompt"),
    [
        ('model = SentenceTransformer("cl-nagoya/ruri-v3-30m", device="cpu")', "検索文書: "),
        ("AutoModel.from_pretrained('intfloat/multilingual-e5-small')", "passage: "),
        ("SentenceTransformer(\n    'pkshatech/GLuCoSE-base-ja-v2')", "passage: "),
        ("| cl-nagoya/ruri-v3-30m | 74.5 |\n| multilingual-e5-large | 70 |", None),
        ('SentenceTransformer("BAAI/bge-m3")', None),
    ],
)
def test_a_renamed_directory_is_known_by_the_example_in_its_card(
    card: str,
    prompt: str | None,
    bert_mean_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = directory(bert_mean_dir, tmp_path / "embedder", {})
    (path / "README.md").write_text(f"# A model\n\n```python\n{card}\n```\n", encoding="utf-8")
    assert job_of(path, tmp_path).prompt is None
    assert [repr(prompt) in record.getMessage() for record in caplog.records] == [True] * (
        prompt is not None
    )


@pytest.mark.parametrize(
    ("name", "config", "prompt"),
    [
        # sentence-transformers keeps places free for both prompts when it saves a model
        ("multilingual-e5-large", {"prompts": {"query": "", "document": ""}}, "passage: "),
        (
            "multilingual-e5-large",
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            "passage: ",
        ),
        ("multilingual-e5-large", {"prompts": {"document": "p: "}}, None),
        (
            "multilingual-e5-large",
            {"prompts": {"text": "passage: "}, "default_prompt_name": "text"},
            None,
        ),
    ],
    ids=str,
)
def test_what_a_directory_registers_does_not_hide_that_the_card_asks_for_another_prompt(
    name: str,
    config: dict[str, Any],
    prompt: str | None,
    bert_mean_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job_of(directory(bert_mean_dir, tmp_path / name, config), tmp_path)
    warnings = [record.getMessage() for record in caplog.records]
    assert [repr(prompt) in warning for warning in warnings] == [True] * (prompt is not None)


def test_models_that_want_none_are_not_named(
    bert_mean_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name in (
        "multilingual-e5-large-instruct",
        "e5-mistral-7b-instruct",
        "bge-m3",
        "Qwen3-Embedding-0.6B",
        "sarashina-embedding-v1-1b",
        "all-MiniLM-L6-v2",
    ):
        job_of(directory(bert_mean_dir, tmp_path / name, {}), tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ({"query": "q: ", "clustering": "c: "}, ["clustering"]),
        ({"query": "", "document": "", "Retrieval-passage": "p: "}, ["Retrieval-passage"]),
        ({"query": "q: ", "document": "", "STS": "s: "}, None),
        ({"web_search_query": "q: ", "s2p_query": "s: "}, None),
        ({"search_query": "q: ", "search_document": "d: "}, ["search_document"]),
    ],
    ids=str,
)
def test_prompts_of_which_none_is_for_documents_are_named(
    prompts: dict[str, str],
    named: list[str] | None,
    bert_mean_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = {"prompts": prompts}
    assert job_of(directory(bert_mean_dir, tmp_path / "model", config), tmp_path).prompt is None
    assert (f"has prompts {named}" in caplog.text) is (named is not None)
    assert bool(caplog.records) is (named is not None)
