"""The command `init`: a spec for data that nobody has described yet."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated

import typer

from pipeline.cli import answers
from pipeline.cli.options import MAKE, AsJson, console, json_object

app = typer.Typer()


def _list_models(is_asked: bool) -> None:
    if not is_asked:
        return
    from pipeline.driver.starter.models import known_models

    for name, model in known_models().items():
        answers.stdout().print(f"{name}: {model.path}, {model}", markup=False)
    raise typer.Exit


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: corpus-embed init data/crawl -o crawl.yaml --model ruri-v3-310m",
)
def init(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_URI", help="the documents: a file, a folder, a glob, s3://…, hf://…"
        ),
    ],
    spec: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="SPEC", help="the spec to write; by default NAME.yaml"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="a short name (`--models` lists them), a folder, or a name on the Hub; by default "
            "one for the language of the texts and for this machine",
        ),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option("--vectors", metavar="URI", help="output.uri of the job; by default out/NAME"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="input.format, for names that do not show it"
        ),
    ] = "auto",
    storage_options: Annotated[
        str,
        typer.Option(
            "--storage-options",
            metavar="JSON",
            show_default=False,
            help="fsspec options of the input, for instance an endpoint_url",
        ),
    ] = "{}",
    force: Annotated[
        bool, typer.Option("--force", help="replace a spec that is there already")
    ] = False,
    models: Annotated[
        bool,
        typer.Option(
            "--models", help="list the short names of models", is_eager=True, callback=_list_models
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at data and write the spec of a job for it: format, text, id, language and partition
    columns are found, each choice with its reason as a comment."""
    from pipeline.driver.starter.starter import look_at

    starter = look_at(
        uri,
        model=model,
        format=format,
        output=vectors,
        storage_options=json_object(storage_options),
    )
    path = spec or f"{starter.spec.name}.yaml"
    starter.write(path, is_forced=force)
    if as_json:
        choices = starter.choices
        fields = [
            {"name": field.name, "type": field.kind, "share": field.share, "example": field.example}
            for field in choices.fields
        ]
        answers.print_json(
            {
                "path": path,
                "spec": starter.spec.model_dump(mode="json"),
                "fields": fields,
                "reasons": dict(choices.roles.why),
                "model": dataclasses.asdict(choices.model),
                "notes": list(choices.notes),
            }
        )
        return
    answers.stdout().print(starter.text.rstrip(), markup=False)
    console.print(f"Written to {path}. Check it, then:", style="green")
    quoted = shlex.quote(path)
    for command in (f"plan {quoted}", f"run {quoted} --limit 100", f"run {quoted}"):
        console.print(f"  corpus-embed {command}", markup=False)
