"""The Iceberg catalog of a job, asked once before any work: whether it will take the table.

In: `publish.iceberg` of the operator's spec and, through pyiceberg, the operator's configuration;
nothing of the output. Out: an error for a catalog that cannot work as it is configured, or a note
on one that does not answer, because the data never waits for a table. The default catalog, a SQLite
file, is neither asked nor created. Cost: the requests of loading a catalog and one more, for
ASK_SECONDS at most.
"""

from __future__ import annotations

import contextlib

from pydantic import ValidationError
from pyiceberg.catalog import Catalog, CatalogType, load_catalog
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchPropertyException, NotInstalledError
from pyiceberg.utils.config import Config
from sqlalchemy.exc import ArgumentError

from pipeline.errors import OutputError, SpecError
from pipeline.job.sections import IcebergSpec
from pipeline.output.lake.local_catalog import CATALOG_NAME
from pipeline.output.lake.missing_snapshots import within_limit
from pipeline.storage.addresses import shown
from pipeline.storage.notes import note
from pipeline.storage.problems import causes, is_about_credentials, problem_of_request, status_of
from pipeline.storage.retry import PROMPT_SECONDS
from pipeline.storage.waits import waiting

__all__ = ["ask"]

ASK_SECONDS = PROMPT_SECONDS
"""How long a catalog may take to answer; in a run, too, which asks it again at its end."""

_TYPES = {kind.value for kind in CatalogType}
_IS_OVERLOADED = {408, 425, 429}
_CONFIGURATION = (
    *(ImportError, NotInstalledError),
    *(ArgumentError, NoSuchPropertyException, ValueError),
)
"""What pyiceberg raises before it sends anything: no address, no package, no such database."""


def ask(spec: IcebergSpec, *, is_local: bool, is_plan: bool) -> None:
    """Ask the catalog of a spec for the namespace of its table, which need not exist yet.

    is_local: whether the output is on a local disk. Raises SpecError for a catalog that is
    misconfigured; in a plan also for one that refuses the request, such as the credentials. In a
    run that is a note, as it is for a catalog that does not answer: its table will be behind.
    """
    if not spec.catalog and is_local:
        return
    name = spec.catalog.get("name", CATALOG_NAME)
    configured = {**(Config().get_catalog_config(name) or {}), **spec.catalog}
    kind = str(configured.get("type", "")).lower()
    uri = str(configured.get("uri", ""))
    if not spec.catalog:
        raise _misconfigured(
            "by default it is a SQLite file in the output, which needs a local disk. Name another "
            "one, for instance {type: rest, uri: …} or {type: glue}"
        )
    if kind and kind not in _TYPES:
        raise _misconfigured(f"type {kind} is none of {', '.join(sorted(_TYPES))}")
    if not uri and kind in ("", "rest", "hive", "sql"):
        raise _misconfigured(f"the catalog {name} has no uri")
    if kind == "dynamodb" or (kind in ("", "sql") and uri.startswith("sqlite")):
        return  # to load it would create its table or its file
    place = shown(uri) or kind
    try:
        with waiting(f"ask the Iceberg catalog at {place}", "", ASK_SECONDS):
            within_limit(f"Iceberg catalog at {place}", lambda: _ask(spec, name), ASK_SECONDS)
    except OutputError:
        _note_silence(place, f"no answer in {ASK_SECONDS:.0f} s")
    except Exception as error:
        is_answer = isinstance(error, ValidationError)  # of a web server, for instance
        if isinstance(error, _CONFIGURATION) and not is_answer:
            problem = " ".join(str(error).split()).replace(uri or place, place)
            raise _misconfigured(problem) from error
        cause = getattr(error, "orig", None) or error  # what SQLAlchemy wraps in paragraphs
        problem = problem_of_request(cause, "it").removeprefix("cannot reach it: ")
        if is_answer:
            problem = "what it answers is no answer of an Iceberg catalog"
        if not (is_answer or _is_refusal(error)):
            _note_silence(place, problem)
        elif is_plan:
            raise _misconfigured(f"{place} cannot be used: {problem}") from error
        else:
            note(
                f"The Iceberg catalog at {place} cannot be used ({problem}): the table will be "
                "behind until its address and credentials are right and `corpus-embed publish` has "
                "run."
            )


def _misconfigured(problem: str) -> SpecError:
    return SpecError(
        f"publish.iceberg.catalog: {problem}. Nothing was started. Correct the catalog's "
        "properties in the spec, in ~/.pyiceberg.yaml or in PYICEBERG_CATALOG__…, or leave "
        "publish.iceberg out."
    )


def _ask(spec: IcebergSpec, name: str) -> None:
    properties = {key: value for key, value in spec.catalog.items() if key != "name"}
    # a plan writes nothing: a SQL catalog gets its tables from the first publication
    catalog = load_catalog(name, **properties, init_catalog_tables="false")
    if not _is_sql(catalog):
        # not the table: to load one reads the files that its metadata names
        with contextlib.suppress(NoSuchNamespaceError, NotImplementedError):
            catalog.load_namespace_properties(spec.table.rpartition(".")[0])


def _is_sql(catalog: Catalog) -> bool:
    """Whether it is a SQL catalog, which is asked here: when it is loaded, it takes a connection
    that fails for a database without its tables."""
    engine = getattr(catalog, "engine", None)
    if engine is not None:
        with engine.connect():
            pass
    return engine is not None


def _is_refusal(error: Exception) -> bool:
    """Whether a catalog has refused a request, or would be asked without credentials, and trying
    again does not help."""
    if any(is_about_credentials(link) for link in causes(error)):
        return True
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in _IS_OVERLOADED


def _note_silence(place: str, problem: str) -> None:
    note(
        f"The Iceberg catalog at {place} does not answer ({problem}): the table will be behind "
        "until it answers and `corpus-embed publish` has run."
    )
