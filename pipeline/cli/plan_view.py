"""How the estimate of a plan looks: amounts with margins, lengths, time, money.

Prints an `Estimate` with rich, one fact a line, below the plan itself (`display.show_plan`).
Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.display import NAME_COLUMNS, WARNING
from pipeline.cli.estimate_lines import amount, percent
from pipeline.cli.terminal import facts
from pipeline.driver.estimate.device_rows import UTILISATION, DeviceRow
from pipeline.driver.estimate.first_document import FirstDocument
from pipeline.driver.estimate.forecast import Estimate
from pipeline.driver.estimate.outlook import Outlook
from pipeline.driver.estimate.time_here import TimeHere
from pipeline.storage.words import by_name, counted, duration, human, number, short

BAR_CHARS = 24
SHOWN_CHARS = 200
"""How much of the first text is shown."""

_SOURCES = {
    "run": "recorded by a run",
    "measured": "measured here",
    "calculated": "calculated, not measured",
}


def show_estimate(console: Console, estimate: Estimate, max_partitions: int) -> None:
    """All of an estimate. max_partitions: of a part."""
    console.print(facts(_rows(estimate, max_partitions), NAME_COLUMNS))
    seen = estimate.sample
    for note in (*seen.problems, *estimate.notes):
        console.print(Text(note, WARNING))
    if seen["embedded_tokens"].value:
        console.print(_devices(estimate.devices))
        shares = ", ".join(f"{share:.0%} in {dtype}" for dtype, share in UTILISATION.items())
        console.print(
            Text(
                "One device alone, without start-up. Prices are examples to edit (--prices FILE). "
                f"Calculated: the maker's peak, of which {shares} is taken to be reached.",
                "dim",
            )
        )


def _rows(estimate: Estimate, max_partitions: int) -> Iterator[tuple[str, Text]]:
    """The facts of an estimate by name, in the order in which they are shown."""
    seen = estimate.sample
    if seen.first:
        yield "first text", Text(_first(seen.first))
    yield "looked at", Text(_looked_at(estimate))
    yield "documents", Text(amount(seen["documents"], "document"))
    if seen["rejects"].value:
        rejects = f"{amount(seen['rejects'], 'reject')}: {by_name(seen.observed.reject_reasons)}"
        yield "rejects", Text(f"{rejects} among those that were looked at", WARNING)
    if estimate.outlook.chunks:
        yield "chunks", Text(estimate.outlook.chunks)
        yield "", Text(amount(seen["rows"], "row"))
    yield "tokens", Text(_tokens(estimate))
    yield "lengths", Text(_lengths(estimate))
    yield "vectors", Text(_vectors(estimate))
    yield "duplicates", Text(_duplicates(estimate))
    if estimate.outlook.n_partitions is not None:
        yield (
            "partitions",
            _partitions(estimate.outlook, estimate.outlook.n_partitions, max_partitions),
        )
    if estimate.bytes_by_precision:
        yield "output", Text(_output(estimate))
    speed = seen.observed.n_prepared_tokens / max(1e-9, seen.observed.prepare_s)
    yield "preparing", Text(f"one core cleans, cuts and tokenizes {short(speed)} tokens/s")
    if estimate.here:
        style = "" if estimate.here.fits else WARNING
        yield "time here", Text(_here(estimate.here), style)


def _first(first: FirstDocument) -> str:
    text = first.texts[0]
    words = " ".join(text.text[: 2 * SHOWN_CHARS].split())
    shown = words if len(words) <= SHOWN_CHARS else f"{words[:SHOWN_CHARS]}…"
    tokens = counted(text.n_tokens, "token")
    if first.n_rows > 1:
        cut = f", the first of {counted(first.n_rows, 'chunk')} of {first.doc_id}"
    elif text.truncated:
        cut = f", cut off: the document {first.doc_id} has {number(first.n_tokens)}"
    else:
        cut = f", the whole document {first.doc_id}"
    return f'"{shown}" ({tokens}{cut})'


def _looked_at(estimate: Estimate) -> str:
    seen = estimate.sample
    documents = counted(seen.observed.n_documents, "document")
    if seen.is_whole:
        return f"all {documents} in {seen.seconds:.1f} s"
    return (
        f"{documents} from {counted(seen.n_cells, 'place')} of the input in {seen.seconds:.1f} s; "
        "± is half of a 95 % interval"
    )


def _tokens(estimate: Estimate) -> str:
    seen = estimate.sample
    words = amount(seen["tokens"], "token")
    if round(seen["embedded_tokens"].value) != round(seen["tokens"].value):
        words += f", of which {number(seen['embedded_tokens'].value)} go through the model"
    return words


def _lengths(estimate: Estimate) -> str:
    """Tokens of a text by powers of two, as bars, and how many texts are cut off."""
    seen = estimate.sample
    powers = sorted(int(name.split()[1]) for name in seen.figures if name.startswith("length "))
    rows = {power: seen[f"length {power}"].value for power in powers}
    most = max(rows.values(), default=0)
    lines = []
    for power in range(min(powers, default=0), max(powers, default=-1) + 1):
        amount = rows.get(power, 0.0)
        bar = "█" * round(BAR_CHARS * amount / most) if most else ""
        bounds = f"{number(1 << power)} to {number((2 << power) - 1)}"
        lines.append(f"{bounds:>16} {bar:<{BAR_CHARS}} {short(amount)}")
    n_cut = seen["truncated"].value
    if n_cut:
        share = n_cut / max(1.0, seen["rows"].value)
        lines.append(
            f"about {percent(share)} of the texts are longer than the model takes: cut off"
        )
    return "\n".join(lines) or "-"


def _vectors(estimate: Estimate) -> str:
    """What happens to the rows of the next snapshot."""
    seen = estimate.sample
    about = "" if seen.is_whole else "about "
    n_reused = round(seen["reused"].value)
    n_new = max(0, round(seen["rows"].value) - n_reused)
    words = [f"{about}{counted(n_new, 'row')} to embed"]
    if n_reused:
        words.append(f"{about}{number(n_reused)} with a vector that the output has already")
    if estimate.carried:
        words.append(f"{number(estimate.carried)} that stay as they are")
    return ", ".join(words)


def _duplicates(estimate: Estimate) -> str:
    observed = estimate.sample.observed
    share = observed.n_repeated / max(1, observed.n_rows)
    words = f"{number(observed.n_repeated)} of {counted(observed.n_rows, 'text')}"
    if estimate.sample.is_whole:
        return f"{words} ({percent(share)}) repeat an earlier one exactly"
    return (
        f"{words} looked at repeat another of them exactly; copies elsewhere do not show in a "
        "sample, so the whole input can have many more"
    )


def _partitions(outlook: Outlook, n_partitions: int, max_partitions: int) -> Text:
    """How many partitions were seen; a warning where a part may have fewer."""
    words = (
        f"{number(n_partitions)} among the {counted(outlook.n_sampled, 'record')} looked at; a "
        f"part may have {number(max_partitions)} (output.max_partitions)"
    )
    return Text(words, WARNING if n_partitions > max_partitions else "")


def _output(estimate: Estimate) -> str:
    sizes = estimate.bytes_by_precision
    others = ", ".join(
        f"{name} {human(size)}" for name, size in sizes.items() if name != estimate.precision
    )
    chosen = human(sizes[estimate.precision])
    return f"about {chosen} more as {estimate.precision} ({others})"


def _here(here: TimeHere) -> str:
    workers = counted(here.workers, "worker")
    words = (
        f"about {duration(here.seconds)}: start-up {duration(here.start_s)}, embedding "
        f"{duration(here.embed_s)} with {workers} of {short(here.tokens_per_s)} tokens/s each "
        f"({_SOURCES[here.rate_source]}) on {here.device_name or 'this machine'}"
    )
    if not here.fits:
        words += f"; the weights of {workers} do not fit into the memory: set runtime.embedders"
    return words


def _money(cost: float, currency: str) -> str:
    return f"{cost:,.2f} {currency}" if cost >= 0.01 else f"< 0.01 {currency}"


def _devices(rows: tuple[DeviceRow, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("device", "tokens/s", "time", "cost", "speed", "memory"):
        table.add_column(name, justify="left" if name in ("device", "speed", "memory") else "right")
    for row in rows:
        fits = {True: "fits", False: "too small", None: ""}[row.fits]
        table.add_row(
            Text(f"{row.name}, {row.dtype}"),
            short(row.tokens_per_s) if row.tokens_per_s else "-",
            duration(3600 * row.hours) if row.hours is not None else "-",
            _money(row.cost, row.currency) if row.cost is not None else "-",
            "" if row.rate_source is None else row.rate_source,
            Text(fits, WARNING if row.fits is False else ""),
        )
    return table
