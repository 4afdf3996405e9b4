"""Commands on a job spec: plan, run, refresh, submit."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Annotated

import typer

from pipeline.cli import answers, display, live
from pipeline.cli.endings import show_result, what_is_kept
from pipeline.cli.estimate_lines import brief
from pipeline.cli.options import (
    MAKE,
    Address,
    AsJson,
    FullRefresh,
    MaxCost,
    MaxTime,
    NominalTime,
    Overrides,
    ProgressMode,
    SpecPath,
    as_time,
    budget_of,
    console,
)
from pipeline.cli.plan_view import show_estimate
from pipeline.driver.cluster.connection import disconnect, log_path
from pipeline.driver.cluster.job_plan import plan_job
from pipeline.driver.cluster.on_ray import run as run_on_ray
from pipeline.driver.estimate.forecast import estimate_of
from pipeline.driver.estimate.prices import prices_from
from pipeline.driver.planning.first_records import first_records
from pipeline.driver.planning.places import is_alone, output_of
from pipeline.driver.planning.plan import Plan
from pipeline.errors import FullRefreshNeeded, WorkerError
from pipeline.job.spec import load_spec
from pipeline.output import lease
from pipeline.storage.retry import patience

app = typer.Typer()


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: corpus-embed plan job.yaml --set runtime.device=cpu",
)
def plan(
    spec: SpecPath,
    overrides: Overrides = [],
    address: Address = None,
    full_refresh: FullRefresh = False,
    prices: Annotated[
        str | None,
        typer.Option(
            "--prices",
            metavar="FILE",
            help="prices, peaks and memory of devices (YAML), in place of CORPUS_EMBED_PRICES and "
            "the examples of pipeline/driver/estimate/prices.yaml",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="measure the speed of this machine for a few seconds where no run recorded one",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, and from a sample what it will take: documents, tokens, time, bytes
    and money. Nothing is written to the output."""
    job_plan = plan_job(load_spec(spec, overrides), address=address)
    first = first_records(job_plan)
    estimate = None
    with prices_from(prices):
        try:
            estimate = estimate_of(
                job_plan, output_of(job_plan.job.spec), is_alone(address), is_measuring=measure
            )
        except WorkerError as error:
            console.print(str(error), style=display.WARNING, markup=False)
    if as_json:
        more = {
            "first_records": [dataclasses.asdict(entry) for entry in first],
            "estimate": estimate.facts() if estimate else None,
        }
        answers.print_json({**job_plan.summary(), **more})
    else:
        display.show_plan(answers.stdout(), job_plan, first)
        if estimate:
            limit = job_plan.job.spec.output.max_partitions
            show_estimate(answers.stdout(), estimate, limit)
    if job_plan.consent_wanted and not full_refresh:
        console.print(job_plan.consent_wanted, style=display.WARNING)
        raise typer.Exit(FullRefreshNeeded.exit_code)


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: corpus-embed run job.yaml --limit 100\n\n"
    "Example: corpus-embed run job.yaml --address auto --max-time 8h",
)
def run(
    spec: SpecPath,
    overrides: Overrides = [],
    address: Address = None,
    nominal_time: NominalTime = None,
    full_refresh: FullRefresh = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            metavar="N",
            help="embed the first N records alone, into a temporary output that the run names",
        ),
    ] = None,
    max_time: MaxTime = None,
    max_cost: MaxCost = None,
    progress: ProgressMode = "auto",
    as_json: AsJson = False,
) -> None:
    """Plan, embed what is missing and commit a snapshot. Run again after any failure to resume."""
    job_spec = load_spec(spec, overrides)
    scheduled = as_time(nominal_time)
    budget = budget_of(max_time, max_cost)
    watcher = live.Watcher(console, progress)
    is_quiet = console.quiet
    console.quiet = is_quiet or watcher.is_alone
    if not as_json:
        console.print(job_spec.settings().rstrip(), style="dim", markup=False)
    plans: list[Plan] = []

    def on_plan(job_plan: Plan) -> None:
        plans.append(job_plan)
        display.show_plan(console, job_plan)

    try:
        # Ray reports dead workers on standard output, which is reserved for our JSON. Its threads
        # and its atexit handler keep the stream that they were started with, so the log is never
        # closed.
        with (
            patience(None),
            contextlib.redirect_stdout(log_path().open("a")),
            watcher as watch,
        ):
            try:
                result = run_on_ray(
                    job_spec,
                    address=address,
                    watch=watch,
                    on_plan=on_plan,
                    nominal_time=scheduled,
                    full_refresh=full_refresh,
                    limit=limit,
                    budget=budget,
                    on_estimate=lambda estimate: console.print(brief(estimate)),
                )
            finally:
                disconnect()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what_is_kept(plans)) from None
    console.quiet = is_quiet
    if as_json or not watcher.is_alone:
        show_result(result, as_json=as_json, is_trial=limit is not None)


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: corpus-embed refresh job.yaml --nominal-time 2026-11-23T04:00:00+09:00",
)
def refresh(
    spec: SpecPath,
    overrides: Overrides = [],
    nominal_time: NominalTime = None,
    address: Address = None,
    full_refresh: FullRefresh = False,
    max_time: MaxTime = None,
    max_cost: MaxCost = None,
    progress: ProgressMode = "auto",
    as_json: AsJson = False,
) -> None:
    """`run` for schedulers: only one at a time works on an output, and it ends at once, without
    Ray, when nothing has changed."""
    with patience(None), lease.hold(output_of(load_spec(spec, overrides))):
        run(
            spec,
            overrides,
            address,
            nominal_time,
            full_refresh,
            max_time=max_time,
            max_cost=max_cost,
            progress=progress,
            as_json=as_json,
        )


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: corpus-embed submit job.yaml --address http://127.0.0.1:8265",
)
def submit(
    spec: SpecPath,
    overrides: Overrides = [],
    nominal_time: NominalTime = None,
    address: Annotated[
        str | None, typer.Option(help="job server, for instance http://127.0.0.1:8265")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(help="folder with `pipeline/` to send; by default the nodes' installation"),
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
    full_refresh: FullRefresh = False,
    max_time: MaxTime = None,
    max_cost: MaxCost = None,
) -> None:
    """Run `refresh` on a Ray cluster through its job server, follow the log and exit with its exit
    code."""
    from pipeline.driver.cluster.submit import submit as submit_job

    budget_of(max_time, max_cost)  # a mistake is found here and not on the head node
    options = ["--full-refresh"] if full_refresh else []
    options += [] if max_time is None else ["--max-time", max_time]
    options += [] if max_cost is None else ["--max-cost", str(max_cost)]
    code_of_job = submit_job(
        load_spec(spec, overrides),
        address,
        say=lambda text: console.print(text, markup=False),
        nominal_time=as_time(nominal_time),
        code=code,
        runtime_env=runtime_env,
        driver_cpus=driver_cpus,
        stop_on_interrupt=stop_on_interrupt,
        options=options,
    )
    raise typer.Exit(code_of_job)
