"""The sections on the vectors of the sample: norms, the map, near duplicates, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.storage.words import agreeing, counted, number
from pipeline.tools.report.blocks import (
    NOTHING,
    Block,
    Column,
    Facts,
    Plot,
    Section,
    Table,
    Text,
    bars,
)
from pipeline.tools.report.findings import Findings
from pipeline.tools.report.geometry import N_NEIGHBOURS
from pipeline.tools.report.input import unread
from pipeline.tools.report.near_duplicates import Pair


def norms(f: Findings) -> Section:
    return Section("norms", "Norms of the vectors", list(_norms(f)))


def _norms(f: Findings) -> Iterator[Block]:
    norms = f.norms
    if norms is None:
        precision = f.loaded.generation.vector_precision
        is_binary = precision == "ubinary" and f.sample.rows
        why = "a vector of bits has none" if is_binary else "the output has no rows"
        yield Text(f"No lengths: {why}.", "muted")
        return
    form = "{:.4f}".format
    if f.model.normalize:
        yield Text(
            "The model's vectors were normalized, so every length is 1 up to rounding: a cosine is "
            "a dot product."
        )
    else:
        yield Text("The vectors were not normalized: compare them by cosine, not by dot product.")
    facts = [(name.capitalize(), form(value)) for name, value in norms.quantiles.items()]
    if f.sample.n_not_finite:
        n_broken = counted(f.sample.n_not_finite, "vector")
        yield Text(f"{n_broken} with NaN or infinity: run `corpus-embed verify`.", "note")
    zeros = norms.n_zero
    yield Facts([*facts, ("Vectors of zeros", number(zeros) if zeros else "none")])
    yield Plot(
        "norms",
        f"Euclidean length of the vectors of {_of_sample(f)}.",
        "A histogram from "
        + " to ".join(form(norms.quantiles[n]) for n in ("smallest", "largest")),
        draw=lambda plots: plots.histogram_plot(norms.histogram, "length", "rows", "0.0000"),
        bars=bars(norms.histogram, "length", "rows", form),
    )


def _of_sample(f: Findings) -> str:
    n_rows = counted(len(f.sample.rows), "row")
    return f"all {n_rows}" if f.sample.is_whole else f"a sample of {n_rows}"


def flat_map(f: Findings) -> Section:
    return Section("map", "A map of the vectors", list(_map(f)))


def _map(f: Findings) -> Iterator[Block]:
    flat = f.flat
    if flat is None:
        yield Text("There are too few different vectors for a map.", "muted")
        return
    first, second = flat.kept_variance
    dimensions = number(f.loaded.generation.dimension)
    yield Text(
        f"Each point is a row, drawn by the direction of its vector on the two axes along which "
        f"these differ most (principal components). They keep {first + second:.1%} of the variance "
        f"({first:.1%} and "
        f"{second:.1%}); the other dimensions of {dimensions} are flattened away."
    )
    yield Text(
        "What the map shows: broad groups, as languages or subjects, and points far from all "
        "others. What it does not show: rows that lie close together here can be far apart in the "
        "vectors; sizes of groups and small distances mean nothing. " + _kept(flat.kept_neighbours)
    )
    grouped = f.sample.group_column
    colours = f", coloured by {grouped}" if grouped else ""
    yield Plot(
        "map",
        f"{_of_sample(f).capitalize()}{colours}. Point at one to read the beginning of its text; "
        "a click on a name in the legend hides its points.",
        f"A scatter plot of {_of_sample(f)}{colours}. The tables below name pairs and neighbours.",
        draw=lambda plots: plots.map_plot(flat, f.sample, f.texts.texts),
    )
    yield from unread(f.texts.problems, "row")


def _kept(share: float | None) -> str:
    if share is None:
        return ""
    return (
        f"Of the {N_NEIGHBOURS} rows nearest to a row, {share:.0%} are also among the "
        f"{N_NEIGHBOURS} nearest in the map."
    )


def duplicates(f: Findings) -> Section:
    return Section("duplicates", "Near duplicates", list(_duplicates(f)))


def _duplicates(f: Findings) -> Iterator[Block]:
    near = f.near
    if not near.n_pairs:
        yield Text("It takes two rows to find duplicates.", "muted")
        return
    pairs = f"{counted(near.n_near, 'pair')} of {number(near.n_pairs)}"
    yield Text(
        f"In {_of_sample(f)}, {pairs} {agreeing(near.n_near, 'has', 'have')} a cosine of "
        f"{near.threshold:g} or more, {number(near.n_same)} of them with the very same text; "
        f"{counted(near.n_rows_near, 'row')} "
        f"({near.n_rows_near / near.n_rows:.1%}) {agreeing(near.n_rows_near, 'is', 'are')} in one. "
        f"The average cosine of two rows is {f.cosines.mean:.3f}."
    )
    yield Text(_whole(f))
    form = "{:.2f}".format
    yield Plot(
        "nearest",
        f"Cosine of each row of {_of_sample(f)} to the nearest other row of it.",
        "A histogram of cosines between 0 and 1.",
        draw=lambda plots: plots.histogram_plot(f.nearest, "cosine", "rows", "0.00"),
        bars=bars(f.nearest, "cosine to the nearest row", "rows", form),
    )
    if near.pairs:
        yield _pairs(f, "The most similar pairs with different texts.", near.pairs)


def _whole(f: Findings) -> str:
    near = f.near
    if near.is_exact:
        return (
            f"The sample is the whole output, so this is exact: a row has {near.per_row:.2f} near "
            "duplicates on average."
        )
    what = (
        f"For the whole output of {counted(f.sample.n_rows, 'row')} this means {near.per_row:,.1f} "
        f"near duplicates a row on average (95 % margin: {near.per_row_low:,.1f} to "
        f"{near.per_row_high:,.1f})"
    )
    return (
        f"{what}, since a pair of the output is in the sample by chance. A row of the sample meets "
        "few of its duplicates, so the share of rows that have one is higher in the whole than "
        "here."
    )


def _pairs(f: Findings, caption: str, pairs: Sequence[Pair]) -> Table:
    names = ["cosine", "relation", "one row", "the other"]
    columns = [Column(names[0], True), Column(names[1])]
    return Table(
        caption,
        [*columns, *(Column(name, is_text=True) for name in names[2:])],
        [
            [f"{pair.score:.3f}", pair.relation, _row(f, pair.first), _row(f, pair.second)]
            for pair in pairs
        ],
    )


def _row(f: Findings, row: int) -> str:
    """A row by its id and the beginning of its text."""
    fields = f.sample.rows[row]
    name = f"{fields['doc_id']} · {fields['chunk']}" if fields["chunk"] else fields["doc_id"]
    text = " ".join((f.texts.texts[row] or "").split())
    return f"{name}: {text}" if text else str(name)


def neighbours(f: Findings) -> Section:
    return Section("neighbours", "Nearest neighbours", list(_neighbours(f)))


def _neighbours(f: Findings) -> Iterator[Block]:
    if not f.neighbourhoods:
        yield Text("There are no rows of different documents to compare.", "muted")
        return
    where = "the output" if f.sample.is_whole else "the sample, not of the whole output"
    yield Text(
        f"Rows drawn by chance, each with the nearest rows of {where} that belong to other "
        "documents and have another text. If these make sense to a reader, the vectors do what "
        "they are for."
    )
    for place in f.neighbourhoods:
        yield Table(
            _row(f, place.row) or NOTHING,
            [Column("cosine", True), Column("nearest row", is_text=True)],
            [[f"{pair.score:.3f}", _row(f, pair.second)] for pair in place.nearest],
        )
