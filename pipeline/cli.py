"""The command line: one function a command, each a thin call of the function that does the work.

Exit codes: 0 done, 1 failed, 2 bad spec, 3 too many rejects, 4 commit conflict (130 and 143: stopped by a signal).
`--json` prints one JSON object on standard output and nothing else there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import signal
import sys
from typing import Annotated, Any, NoReturn

import pydantic_core
import typer
from rich.console import Console
from rich.table import Table

from pipeline import commit, display
from pipeline.errors import CorpusEmbedError, SpecError
from pipeline.job import resolve
from pipeline.plan import make_plan
from pipeline.spec import JobSpec, load_spec
from pipeline.storage import Store

app = typer.Typer(
    help="Embed a corpus: shards in, searchable Parquet with lineage out.",
    no_args_is_help=True,
    add_completion=False,
)
console = Console(stderr=True, highlight=False, soft_wrap=True)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="job spec (YAML)")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="output URI, as in output.uri")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="override, for instance runtime.part_bytes=1MiB"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Number = Annotated[int | None, typer.Option("--snapshot", help="snapshot number; the newest by default")]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; RAY_ADDRESS, or one on this machine, by default")
]
Options = Annotated[
    str,
    typer.Option(
        "--storage-options", metavar="JSON", help="fsspec options of OUTPUT, for instance an endpoint_url"
    ),
]


@app.command()
def plan(spec: SpecPath, overrides: Overrides = [], address: Address = None, as_json: AsJson = False) -> None:
    """Dry run: which shards and parts are to do, done and stale."""
    job_spec = load_spec(spec, overrides)
    device: str = job_spec.runtime.device
    if device == "auto":
        device = _cluster_device(job_spec, address)
    found = make_plan(resolve(job_spec, device), Store(job_spec.output.uri, job_spec.output.storage_options))
    if as_json:
        _print_json(found.summary())
    else:
        display.show_plan(Console(highlight=False, soft_wrap=True), found)


@app.command()
def run(spec: SpecPath, overrides: Overrides = [], address: Address = None, as_json: AsJson = False) -> None:
    """Plan, embed what is missing, commit a snapshot. Run it again after any failure: it resumes."""
    from pipeline.cluster import log_path
    from pipeline.run import run as run_job

    job_spec = load_spec(spec, overrides)
    if not as_json:
        console.print(job_spec.to_yaml().rstrip(), style="dim", markup=False)
    # Ray tells of dead workers on standard output, which is for our own JSON
    with log_path().open("a") as log, contextlib.redirect_stdout(log), display.Watcher(console) as watch:
        result = run_job(
            job_spec, address=address, watch=watch, on_plan=lambda found: display.show_plan(console, found)
        )
    if as_json:
        _print_json({"embedded": result.embedded, "snapshot": result.snapshot.model_dump(mode="json"),
                     "run": result.progress.summary(), "plan": result.plan.summary()})  # fmt: skip
    elif result.embedded:
        display.report(console, result.progress, job_spec.output.uri, result.snapshot)
    else:
        console.print(
            f"[green]nothing to do[/green]: snapshot {result.snapshot.number} already has {result.snapshot.n_rows} rows"
        )


@app.command()
def status(output: Output, options: Options = "{}", as_json: AsJson = False) -> None:
    """Snapshots of an output, and parts that are finished but in no snapshot yet."""
    store = Store(output, _options(options))
    head = commit.load_snapshot(store)
    live = commit.live_parts(store, head)
    names = {path.rpartition("/")[2].removesuffix(".json") for path in store.list("_meta/manifests")}
    waiting = len(names - {part.part_id for part in live})
    numbers = commit.snapshot_numbers(store)
    if as_json:
        _print_json(
            {
                "head": head.model_dump(mode="json") if head else None,
                "snapshots": numbers,
                "parts_not_in_head": waiting,
            }
        )
        return
    out = Console(highlight=False, soft_wrap=True)
    if head is None:
        out.print(f"no snapshot yet; {waiting} parts are finished")
        return
    state = "complete" if head.complete else "partial: its run has not ended"
    out.print(
        f"snapshot {head.number} ({state}), {len(numbers)} kept, run {head.run_id}, fingerprint {head.fingerprint}"
    )
    out.print(
        f"{head.n_rows} rows, {head.n_documents} documents, {head.n_rejects} rejects {head.reject_reasons or ''}"
    )
    out.print(
        f"{head.n_files} files, {display.human(head.size_bytes)}, {head.n_tokens} tokens; {waiting} parts outside the head"
    )


@app.command()
def verify(
    output: Output, sample: Annotated[int, typer.Option(help="rows to embed again from their source")] = 32,
    model_path: Annotated[str | None, typer.Option("--model", help="where the model is now, if it moved")] = None,
    snapshot: Number = None, options: Options = "{}", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Check an output against its manifests and, for a sample, against its sources."""
    from pipeline.verify import verify as verify_output

    found = verify_output(output, _options(options), snapshot=snapshot, sample=sample, model_path=model_path)
    if as_json:
        _print_json(dataclasses.asdict(found) | {"ok": found.ok})
    else:
        out = Console(highlight=False, soft_wrap=True)
        for check in found.checks:
            out.print(
                f"{'[green]ok  [/green]' if check.ok else '[red]FAIL[/red]'} {check.name}: {check.detail}"
            )
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def trace(
    output: Output, row: Annotated[str, typer.Argument(metavar="ROW", help="doc_id, or doc_id#chunk")],
    snapshot: Number = None, options: Options = "{}", as_json: AsJson = False,
) -> None:  # fmt: skip
    """From one row back to its shard, record and bytes; checks the hash of the source text."""
    from pipeline.trace import trace as trace_row

    found = trace_row(output, _options(options), row, snapshot=snapshot)
    if as_json:
        _print_json(dataclasses.asdict(found) | {"ok": found.ok})
    else:
        for line in found.lines():
            Console(highlight=False, soft_wrap=True).print(line, markup=False)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def search(
    output: Output, text: Annotated[str, typer.Argument(help="what to look for")],
    k: Annotated[int, typer.Option("-k", help="how many hits")] = 10,
    prompt_name: Annotated[str | None, typer.Option(help="prompt of the model for queries")] = None,
    model_path: Annotated[str | None, typer.Option("--model", help="where the model is now, if it moved")] = None,
    snapshot: Number = None, options: Options = "{}", as_json: AsJson = False,
) -> None:  # fmt: skip
    """The k nearest rows to a text, exactly, over the whole snapshot."""
    from pipeline.search import search as search_output

    hits = search_output(
        output,
        _options(options),
        text,
        k=k,
        snapshot=snapshot,
        prompt_name=prompt_name,
        model_path=model_path,
    )
    if as_json:
        _print_json({"hits": [dataclasses.asdict(hit) for hit in hits]})
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("score", "doc_id", "chunk", "text"):
        table.add_column(name, justify="right" if name == "score" else "left", overflow="fold")
    for hit in hits:
        table.add_row(
            f"{hit.score:.4f}", hit.doc_id, str(hit.chunk), " ".join((hit.text or "").split())[:100]
        )
    Console(highlight=False).print(table)


@app.command()
def vacuum(
    output: Output, keep: Annotated[int, typer.Option(min=1, help="complete snapshots to keep")] = 2,
    older_than_hours: Annotated[float, typer.Option(min=0, help="grace period by the store's clock")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="really delete; without it only listed")] = False,
    options: Options = "{}", as_json: AsJson = False,
) -> None:  # fmt: skip
    """List (or with --delete remove) what the kept snapshots do not need."""
    from pipeline.vacuum import vacuum as vacuum_output

    grace = datetime.timedelta(hours=older_than_hours)
    found = vacuum_output(output, _options(options), keep_snapshots=keep, older_than=grace, delete=delete)
    _show_fields(found, as_json)


@app.command()
def schema() -> None:
    """The JSON Schema of a job spec, for editors and checks."""
    _print_json(JobSpec.model_json_schema())


def main() -> NoReturn:
    """Console script: runs a command, turns errors of ours into a message and an exit code."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        app(standalone_mode=False)
        code = 0
    except CorpusEmbedError as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.print("stopped; finished parts are kept, run the same command again to go on")
        code = 130
    except typer.Exit as leave:
        code = leave.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _on_sigterm(*_: Any) -> None:
    console.print("terminated; finished parts are kept, run the same command again to go on")
    sys.exit(143)


def _cluster_device(spec: JobSpec, address: str | None) -> str:
    from pipeline.cluster import device_of

    return device_of(spec, address)


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpecError(f"--storage-options {text}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SpecError(f"--storage-options {text}: a JSON object is needed")
    return found


def _show_fields(found: Any, as_json: bool) -> None:
    fields = dataclasses.asdict(found)
    if as_json:
        _print_json(fields)
        return
    out = Console(highlight=False, soft_wrap=True)
    for name, value in fields.items():
        out.print(f"{name}: ", end="", style="bold")
        out.print(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str),
            markup=False,
        )


def _print_json(value: Any) -> None:
    sys.stdout.write(
        json.dumps(value, ensure_ascii=False, indent=1, default=pydantic_core.to_jsonable_python) + "\n"
    )
