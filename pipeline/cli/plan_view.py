"""How the outlook of a plan looks: the chunks, the partitions.

Prints an `Outlook` with rich, one fact a line, below the plan itself (`display.show_plan`).
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.display import WARNING
from pipeline.driver.outlook import Outlook
from pipeline.storage.words import counted, number


def show_outlook(console: Console, outlook: Outlook, max_partitions: int) -> None:
    """One line for chunks, one for partitions. max_partitions: of a part."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if outlook.chunks:
        table.add_row("chunks", Text(outlook.chunks))
    if outlook.n_partitions is not None:
        style = WARNING if outlook.n_partitions > max_partitions else ""
        words = (
            f"{number(outlook.n_partitions)} among the first "
            f"{counted(outlook.n_sampled, 'record')}; a part may have {number(max_partitions)} "
            "(output.max_partitions)"
        )
        table.add_row("partitions", Text(words, style))
    console.print(table)
