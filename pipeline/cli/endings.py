"""How a run ends: what the command says of its result, and of what an interrupted one leaves."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from pipeline.cli import answers, display
from pipeline.cli.estimate_lines import compared
from pipeline.cli.options import console
from pipeline.driver.budget import Left
from pipeline.driver.commits import waiting_parts
from pipeline.driver.planning.plan import Plan
from pipeline.driver.run import Result
from pipeline.errors import CorpusEmbedError
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store
from pipeline.storage.words import counted, duration


def show_result(result: Result, *, as_json: bool, is_trial: bool = False) -> None:
    """The result of a run: a report on standard error, or JSON on standard output. is_trial:
    whether its output is one to look at and delete."""
    uri = result.plan.job.spec.output.uri
    if as_json:
        answers.print_json(
            {
                "embedded": result.embedded,
                "output": uri,
                "snapshot": result.snapshot.model_dump(mode="json"),
                "rows": result.rows,
                "damaged_shards": [dataclasses.asdict(shard) for shard in result.damaged],
                "tables_behind": list(result.tables_behind),
                "run": result.progress.summary(),
                "plan": result.plan.summary(),
                "estimate": result.estimate,
                "truth": dict(result.truth),
                "left": dataclasses.asdict(result.left) if result.left else None,
            }
        )
        return
    if console.quiet:
        console.quiet = False
        console.print(display.headline(uri, result.snapshot))
        _show_unfinished(result)
        console.quiet = True
        return
    if result.snapshot != result.plan.head or result.left:
        display.report(console, result.progress, uri, result.snapshot, result.rows, result.damaged)
    else:
        console.print("nothing to do", style="green", end="")
        console.print(
            f": snapshot {result.snapshot.number} is up to date, with "
            f"{counted(result.snapshot.n_rows, 'row')}"
        )
        display.show_damage(console, result.damaged)
    if result.estimate:
        console.print(compared(result.estimate, result.truth))
    display.show_passed_over(console, result.plan)
    n_old_files = sum(len(part.data_files) for part in result.plan.stale)
    if n_old_files and result.snapshot != result.plan.head:
        console.print(answers.old_files(n_old_files))
    _show_unfinished(result)
    if is_trial:
        _show_trial(uri)


def _show_unfinished(result: Result) -> None:
    """What a run was asked for and has not done: a budget left it, or a table did not take it."""
    if result.left:
        is_kept = result.snapshot == result.plan.head
        console.print(_left(result.left, is_kept), style=display.WARNING)
    for sentence in result.tables_behind:
        console.print(f"warning: {sentence}", markup=False, style=display.WARNING)


def _left(left: Left, is_kept: bool) -> str:
    """What a run says whose budget was used. is_kept: whether the head stays as it is."""
    spent = f" after {left.cost:.2f} dollars" if left.cost else ""
    state = "kept for the next run" if is_kept else "committed"
    return (
        f"The budget of this run is used{spent}: finished parts are {state}. Left are about "
        f"{counted(left.parts, 'part')}, {counted(left.documents, 'document')}, "
        f"{duration(left.seconds)} at the rate of this run. Run the same command again to go on."
    )


def _show_trial(uri: str) -> None:
    output = shlex.quote(uri)
    console.print(f"These are the first records alone, in {uri}. Look at them, then delete them:")
    for command in (f"search {output} 'a few words'", f"verify {output}"):
        console.print(f"  corpus-embed {command}", markup=False)
    if "://" not in uri:
        console.print(f"  rm -r {output}", markup=False)


def what_is_kept(plans: Sequence[Plan]) -> str:
    """The last words of a run that was stopped. plans: those that it made so far."""
    parts: list[Manifest] = []
    if plans:
        output = plans[-1].job.spec.output
        try:
            parts = waiting_parts(plans[-1], Store(output.uri, output.storage_options))
        except (CorpusEmbedError, OSError):  # the store may be why it was stopped
            return "Stopped: finished parts are kept. Run the same command again to resume."
    if not parts:
        return "Stopped: no part was finished yet. Run the same command again to start over."
    n_documents = sum(part.n_documents for part in parts)
    kept = f"{counted(len(parts), 'part')}, {counted(n_documents, 'document')}"
    return f"Stopped: {kept} are kept. Run the same command again to resume."
