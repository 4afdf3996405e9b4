"""What decides a text is in the fingerprint of the jobs that use it, and in no other. Oracle: the
Unicode Character Database in Python."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.errors import SpecError, WorkerError
from pipeline.job import resolve as resolve_module
from pipeline.job import text_software
from pipeline.job.resolve import Job, resolve
from pipeline.job.spec import JobSpec
from pipeline.job.text_software import FIRST_NORMAL_FORMS, normal_forms
from pipeline.job.vector_identity import has_same_vectors


def job(model: Path, *, unicode: str = "none", formats: tuple[str, ...] = ()) -> Job:
    spec = JobSpec.model_validate(
        {
            "name": "t",
            "input": {"uri": "a.warc.gz"},
            "model": {"path": str(model)},
            "output": {"uri": "out"},
            "prepare": {"unicode": unicode},
        }
    )
    return resolve(spec, "cpu", formats)


@pytest.fixture
def other_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_software, "FIRST_NORMAL_FORMS", "of an earlier version")


def test_jobs_without_pages_and_with_the_first_tables_name_no_software(bert_mean_dir: Path) -> None:
    assert normal_forms() == FIRST_NORMAL_FORMS
    identities = [job(bert_mean_dir, unicode=form).identity for form in ("none", "NFC", "NFKC")]
    assert not any("text" in identity for identity in identities)


def test_jobs_with_pages_name_what_decodes_and_extracts_them(bert_mean_dir: Path) -> None:
    pytest.importorskip("resiliparse", reason="extra html")
    with_pages = job(bert_mean_dir, formats=("pages",))
    packages = ("resiliparse", "turbohtml")
    assert with_pages.identity["text"] == {
        package: importlib.metadata.version(package) for package in packages
    }
    without = job(bert_mean_dir)
    assert with_pages.fingerprint != without.fingerprint
    assert has_same_vectors(without.identity, with_pages.identity)  # by the hash of a text
    with_pages.model_of_worker()


def test_jobs_with_csv_name_how_it_is_read_and_keep_their_vectors(bert_mean_dir: Path) -> None:
    with_csv = job(bert_mean_dir, formats=("csv",))
    assert list(with_csv.identity["text"].values()) == ["2"]
    assert with_csv.fingerprint != job(bert_mean_dir).fingerprint
    assert has_same_vectors(job(bert_mean_dir).identity, with_csv.identity)
    with_csv.model_of_worker()


def test_a_missing_package_is_found_while_planning(
    bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_software, "PAGE_PACKAGES", ("no-such-package",))
    with pytest.raises(SpecError, match=r"needs no-such-package.*corpus-embed\[html\]"):
        job(bert_mean_dir, formats=("pages",))
    job(bert_mean_dir)


@pytest.mark.usefixtures("other_pyarrow")
def test_other_unicode_tables_change_the_fingerprint_of_jobs_that_normalize(
    bert_mean_dir: Path,
) -> None:
    assert "text" not in job(bert_mean_dir).identity
    for form in ("NFC", "NFKC"):
        assert list(job(bert_mean_dir, unicode=form).identity["text"].values()) == [normal_forms()]


@pytest.mark.parametrize(
    "software", [{"turbohtml": "0.1", "resiliparse": "2.0"}, {"the Unicode tables of pyarrow": "x"}]
)
def test_a_worker_with_other_software_stops_before_its_first_part(
    bert_mean_dir: Path, software: dict[str, str]
) -> None:
    pytest.importorskip("resiliparse", reason="extra html")
    planned = job(bert_mean_dir, unicode="NFKC")
    other = dataclasses.replace(planned, identity=planned.identity | {"text": software})
    with pytest.raises(WorkerError, match="and the driver, which planned this run, has"):
        other.model_of_worker()


@pytest.mark.parametrize("character", ["\u209d", "\u00e9", "\u0327", "\U000105c9"])
def test_a_character_that_older_tables_do_not_know_is_seen(
    character: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_older_tables(text: Any, form: str) -> Any:
        unknown = text[0].as_py().replace(character, "\ue000")  # private: no form, no order
        return pa.array([utf8_normalize(pa.array([unknown]), form)[0].as_py()])

    utf8_normalize = pc.utf8_normalize
    monkeypatch.setattr(pc, "utf8_normalize", of_older_tables)
    assert normal_forms.__wrapped__() != FIRST_NORMAL_FORMS


def test_the_probed_characters_are_all_that_have_a_form_of_their_own() -> None:
    probed = {
        code
        for start, stop in (*text_software._CHARACTERS, *text_software._MARKS)
        for code in range(start, stop)
    }
    for code in set(range(0x110000)) - probed - set(range(0xD800, 0xE000)):
        character = chr(code)
        is_hangul = 0xAC00 <= code <= 0xD7A3  # by rule
        assert is_hangul or unicodedata.normalize("NFKD", character) == character
        assert unicodedata.combining(character) == 0
    assert resolve_module.text_software is text_software.text_software
