"""The command `submit`: a refresh on a cluster, from a machine that is no part of it."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli_options import NominalTime, Overrides, SpecPath, as_time, console
from pipeline.spec import load_spec

app = typer.Typer()


@app.command()
def submit(
    spec: SpecPath, overrides: Overrides = [], nominal_time: NominalTime = None,
    address: Annotated[str | None, typer.Option(help="job server, for instance http://127.0.0.1:8265")] = None,
    code: Annotated[str | None, typer.Option(help="folder with `pipeline/` to send; else what the nodes have")] = None,
    runtime_env: Annotated[str | None, typer.Option(help="YAML of a Ray runtime environment to add")] = None,
    driver_cpus: Annotated[float, typer.Option(min=0, help="CPUs of the driver; 0: it runs on the head node")] = 0.0,
    stop_on_interrupt: Annotated[bool, typer.Option("--stop-on-interrupt", help="Ctrl-C stops the job")] = False,
) -> None:  # fmt: skip
    """Run `refresh` on a Ray cluster through its job server, follow the log, and end with its exit code."""
    from pipeline.submit import submit as submit_job

    code_of_job = submit_job(
        load_spec(spec, overrides), address, say=lambda text: console.print(text, markup=False),
        nominal_time=as_time(nominal_time), code=code, runtime_env=runtime_env, driver_cpus=driver_cpus,
        stop_on_interrupt=stop_on_interrupt,
    )  # fmt: skip
    raise typer.Exit(code_of_job)
