"""The command line: one function a command, each a thin call of the function that does the work.

Exit codes: 0 done, else those of `pipeline/errors.py`; 130 and 143: stopped by a signal.
`--json` prints one JSON object on standard output and nothing else there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from typing import Annotated, Any, NoReturn, cast

import typer

from pipeline.cli import display, outputs
from pipeline.cli.options import (
    Address,
    AsJson,
    NominalTime,
    Number,
    Options,
    Output,
    Overrides,
    SpecPath,
    as_time,
    console,
    json_object,
)
from pipeline.driver.plan import plan_job
from pipeline.errors import CorpusEmbedError, SpecError
from pipeline.job.spec import JobSpec, load_spec
from pipeline.output import lease
from pipeline.output.snapshots import (
    count_waiting_parts,
    live_parts,
    load_snapshot,
    snapshot_numbers,
)
from pipeline.storage.store import Store

app = typer.Typer(
    help="Embed a corpus: shards in, searchable Parquet with lineage out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(outputs.app)
# typer 0.29 carries its own click and does not export its UsageError
_USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])


@app.command()
def plan(
    spec: SpecPath, overrides: Overrides = [], address: Address = None, as_json: AsJson = False
) -> None:
    """Dry run: which shards and parts are to do, done and stale."""
    found = plan_job(load_spec(spec, overrides), address=address)
    if as_json:
        display.print_json(found.summary())
    else:
        display.show_plan(display.stdout(), found)


@app.command()
def run(
    spec: SpecPath,
    overrides: Overrides = [],
    address: Address = None,
    nominal_time: NominalTime = None,
    as_json: AsJson = False,
) -> None:
    """Plan, embed what is missing, commit a snapshot. Run it again after any failure: it resumes."""
    from pipeline.driver.cluster import disconnect, log_path
    from pipeline.driver.run import run as run_job

    job_spec = load_spec(spec, overrides)
    if not as_json:
        console.print(job_spec.to_yaml().rstrip(), style="dim", markup=False)
    # Ray tells of dead workers on standard output, which is for our own JSON; its threads and its
    # atexit handler keep what they were given, so the log stays open
    with contextlib.redirect_stdout(log_path().open("a")), display.Watcher(console) as watch:
        result = run_job(
            job_spec,
            address=address,
            watch=watch,
            on_plan=lambda found: display.show_plan(console, found),
            nominal_time=as_time(nominal_time),
        )
        disconnect()
    if as_json:
        display.print_json(
            {
                "embedded": result.embedded,
                "snapshot": result.snapshot.model_dump(mode="json"),
                "rows": result.rows,
                "run": result.progress.summary(),
                "plan": result.plan.summary(),
            }
        )
    elif result.snapshot != result.plan.head:
        display.report(console, result.progress, job_spec.output.uri, result.snapshot, result.rows)
    else:
        console.print(
            f"[green]nothing to do[/green]: snapshot {result.snapshot.number} already has {result.snapshot.n_rows} rows"
        )


@app.command()
def refresh(
    spec: SpecPath,
    overrides: Overrides = [],
    nominal_time: NominalTime = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """What a scheduler calls: `run`, one at a time on an output; ends at once, without Ray, when
    nothing changed."""
    output = load_spec(spec, overrides).output
    with lease.hold(Store(output.uri, output.storage_options)):
        run(spec, overrides, address, nominal_time, as_json)


@app.command()
def submit(
    spec: SpecPath,
    overrides: Overrides = [],
    nominal_time: NominalTime = None,
    address: Annotated[
        str | None, typer.Option(help="job server, for instance http://127.0.0.1:8265")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="folder with `pipeline/` to send; else what the nodes have")
    ] = None,
    runtime_env: Annotated[
        str | None, typer.Option(help="YAML of a Ray runtime environment to add")
    ] = None,
    driver_cpus: Annotated[
        float, typer.Option(min=0, help="CPUs of the driver; 0: it runs on the head node")
    ] = 0.0,
    stop_on_interrupt: Annotated[
        bool, typer.Option("--stop-on-interrupt", help="Ctrl-C stops the job")
    ] = False,
) -> None:
    """Run `refresh` on a Ray cluster through its job server, follow the log, and end with its exit
    code."""
    from pipeline.driver.submit import submit as submit_job

    code_of_job = submit_job(
        load_spec(spec, overrides),
        address,
        say=lambda text: console.print(text, markup=False),
        nominal_time=as_time(nominal_time),
        code=code,
        runtime_env=runtime_env,
        driver_cpus=driver_cpus,
        stop_on_interrupt=stop_on_interrupt,
    )
    raise typer.Exit(code_of_job)


@app.command()
def status(output: Output, options: Options = "{}", as_json: AsJson = False) -> None:
    """Snapshots of an output, and parts that are finished but in no snapshot yet."""
    store = Store(output, json_object(options))
    head = load_snapshot(store)
    live = live_parts(store, head)
    waiting = count_waiting_parts(store, live)
    numbers = snapshot_numbers(store)
    if as_json:
        display.print_json(
            {
                "head": head.model_dump(mode="json") if head else None,
                "snapshots": numbers,
                "parts_not_in_head": waiting,
            }
        )
        return
    display.show_status(head, numbers, waiting)


@app.command()
def verify(
    output: Output,
    sample: Annotated[int, typer.Option(help="rows to embed again from their source")] = 32,
    model_path: Annotated[
        str | None, typer.Option("--model", help="where the model is now, if it moved")
    ] = None,
    snapshot: Number = None,
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """Check an output against its manifests and, for a sample, against its sources."""
    from pipeline.tools.verify.verification import verify as verify_output

    found = verify_output(
        output, json_object(options), snapshot=snapshot, sample=sample, model_path=model_path
    )
    if as_json:
        display.print_json(dataclasses.asdict(found) | {"ok": found.ok})
    else:
        display.show_checks(found.checks)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def trace(
    output: Output,
    row: Annotated[str, typer.Argument(metavar="ROW", help="doc_id, or doc_id#chunk")],
    snapshot: Number = None,
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """From one row back to its shard, record and bytes; checks the hash of the source text."""
    from pipeline.tools.trace import trace as trace_row

    found = trace_row(output, json_object(options), row, snapshot=snapshot)
    if as_json:
        display.print_json(dataclasses.asdict(found) | {"ok": found.ok})
    else:
        for line in found.lines():
            display.stdout().print(line, markup=False)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def search(
    output: Output,
    text: Annotated[str, typer.Argument(help="what to look for")],
    k: Annotated[int, typer.Option("-k", help="how many hits")] = 10,
    prompt_name: Annotated[str | None, typer.Option(help="prompt of the model for queries")] = None,
    model_path: Annotated[
        str | None, typer.Option("--model", help="where the model is now, if it moved")
    ] = None,
    snapshot: Number = None,
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """The k nearest rows to a text, exactly, over the whole snapshot."""
    from pipeline.tools.search import search as search_output

    hits = search_output(
        output,
        json_object(options),
        text,
        k=k,
        snapshot=snapshot,
        prompt_name=prompt_name,
        model_path=model_path,
    )
    if as_json:
        display.print_json({"hits": [dataclasses.asdict(hit) for hit in hits]})
        return
    display.show_hits(hits)


@app.command()
def schema(as_json: AsJson = True) -> None:
    """The JSON Schema of a job spec, for editors and checks; always JSON."""
    display.print_json(JobSpec.model_json_schema())


def main() -> NoReturn:
    """Console script: runs a command, turns errors of ours into a message and an exit code."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = int(app(standalone_mode=False) or 0)  # typer returns the code of a typer.Exit here
    except CorpusEmbedError as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False)
        code = error.exit_code
    except _USAGE_ERROR as error:
        console.print(str(error), markup=False)
        code = SpecError.exit_code
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
