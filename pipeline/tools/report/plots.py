"""The plots of a report, drawn by Bokeh.

In: figures. Out: one plot each, as the JSON that BokehJS draws. Values that come from an output are
data of a plot, never part of its code: the hover boxes show them as text. Models are numbered from
the start in each plot, so that the same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bokeh.embed
from bokeh.models import BasicTickFormatter, ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure

from pipeline.storage.printable import printable
from pipeline.tools.report.attempts import Version
from pipeline.tools.report.geometry import Histogram, Map
from pipeline.tools.report.palette import ACCENT, FAINT, GROUPS, INK, MUTED, PAPER, RULE, THIRD
from pipeline.tools.report.sample import Sample
from pipeline.tools.report.timeline import WAITS, Stage, Timeline

HEIGHT = 280
LEGEND_CHARS = 40
"""The most characters of a legend in one line, four for each mark: 400 pixels hold them."""
_FONT = "system-ui, sans-serif"
_WHOLE = "0,0"
_SHORT = "0.[00]a"
"""Formats of numbers on axes and in hover boxes, in the language of Bokeh."""


def plot_json(plot: figure) -> dict[str, Any]:
    """What BokehJS needs to draw a plot, without ids that depend on what was drawn before."""
    item: Any = bokeh.embed.json_item(plot)
    numbers: dict[str, str] = {}

    def numbered(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: numbers.setdefault(inner, f"m{len(numbers)}")
                if key in ("id", "root_id") and isinstance(inner, str)
                else numbered(inner)
                for key, inner in value.items()
            }
        return [numbered(inner) for inner in value] if isinstance(value, list) else value

    renumbered: dict[str, Any] = numbered(item)
    return renumbered


def versions_plot(versions: Sequence[Version]) -> figure:
    """Rows of each recorded snapshot that were carried, reused and embedded, stacked."""
    known = [version for version in reversed(versions) if version.attempt]
    kinds = {"carried": FAINT, "reused": THIRD, "embedded": ACCENT}
    data: dict[str, Any] = {kind: [v.rows(kind) or 0 for v in known] for kind in kinds}
    data["snapshot"] = [str(version.snapshot.number) for version in known]
    plot = _figure(x_range=data["snapshot"], x_axis_label="snapshot", y_axis_label="rows")
    renderers = plot.vbar_stack(
        list(kinds),
        x="snapshot",
        width=min(0.8, 0.12 * len(known) + 0.1),
        color=list(kinds.values()),
        source=ColumnDataSource(data),
        legend_label=list(kinds),
    )
    tips = [("snapshot", "@snapshot"), *((kind, f"@{kind}{{{_WHOLE}}}") for kind in kinds)]
    plot.add_tools(HoverTool(renderers=renderers[-1:], tooltips=tips))
    plot.y_range.start = 0
    _finish(plot)
    _legend_above(plot)
    return plot


def timeline_plot(line: Timeline) -> figure:
    """Tokens embedded since the start of a run; the slope is the throughput."""
    scale, unit = (60.0, "minutes") if line.points[-1][0] >= 120 else (1.0, "seconds")
    times = [seconds / scale for seconds, _ in line.points]
    tokens = [count for _, count in line.points]
    data = ColumnDataSource({"time": times, "tokens": tokens})
    plot = _figure(x_axis_label=f"{unit} since the start", y_axis_label="tokens embedded")
    plot.step("time", "tokens", source=data, mode="after", line_width=2, color=ACCENT)
    points = plot.scatter("time", "tokens", source=data, size=6, color=ACCENT)
    tips = [(unit, "@time{0,0.0}"), ("tokens", f"@tokens{{{_WHOLE}}}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips, limit=1))
    plot.y_range.start = 0
    plot.x_range.start = 0
    _finish(plot)
    return plot


def stages_plot(stages: Sequence[Stage]) -> figure:
    """Seconds of all workers by stage; waits are grey."""
    names = [stage.name.replace("_", " ") for stage in reversed(stages)]
    data: dict[str, Any] = {
        "stage": names,
        "seconds": [stage.seconds for stage in reversed(stages)],
        "colour": [FAINT if stage.name in WAITS else ACCENT for stage in reversed(stages)],
    }
    plot = _figure(
        height=max(120, 34 * len(stages) + 60), y_range=names, x_axis_label="worker seconds"
    )
    source = ColumnDataSource(data)
    bars = plot.hbar("stage", right="seconds", height=0.62, color="colour", source=source)
    tips = [("stage", "@stage"), ("seconds", "@seconds{0,0.0}")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.x_range.start = 0
    _finish(plot)
    plot.ygrid.grid_line_color = None
    return plot


def histogram_plot(values: Histogram, label: str, count_label: str, numbers: str) -> figure:
    """numbers: the format of the values on the axis and in the hover box."""
    edges = values.edges
    data: dict[str, Any] = {"left": edges[:-1], "right": edges[1:], "count": values.counts}
    plot = _figure(x_axis_label=label, y_axis_label=count_label)
    bars = plot.quad(
        left="left",
        right="right",
        top="count",
        bottom=0,
        source=ColumnDataSource(data),
        fill_color=ACCENT,
        line_color=PAPER,
    )
    tips = [(label, f"@left{{{numbers}}} to @right{{{numbers}}}"), (count_label, "@count{0,0}")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.y_range.start = 0
    _finish(plot, numbers)
    plot.xgrid.grid_line_color = None
    return plot


MAP_TOOLTIP = (
    '<div style="max-width: min(19rem, 60vw); white-space: normal; overflow-wrap: anywhere">'
    "<b>@name</b> <i>@group</i><br>@text</div>"
)
"""Bokeh puts values in as text, not as markup."""


def map_plot(flat: Map, sample: Sample, texts: Sequence[str | None]) -> figure:
    """The rows of a sample in two dimensions, coloured by group, with their texts on hover."""
    groups = sorted({str(row["group"]) for row in sample.rows}, key=lambda g: (g == "other", g))
    plot = _figure(
        height=460,
        x_axis_label="first principal component",
        y_axis_label="second principal component",
        tools="pan,box_zoom,wheel_zoom,reset",
        toolbar_location="below",
        active_drag=None,
    )
    is_grouped = len(groups) > 1
    size = 7 if len(sample.rows) <= 600 else 5
    for group, colour in zip(groups, GROUPS, strict=False):
        chosen = [n for n, row in enumerate(sample.rows) if str(row["group"]) == group]
        data: dict[str, Any] = {
            "x": flat.places[chosen, 0],
            "y": flat.places[chosen, 1],
            "name": [_name(sample.rows[n]) for n in chosen],
            "text": [_one_line(texts[n] or "") for n in chosen],
            "group": [printable(group) if is_grouped else ""] * len(chosen),
        }
        legend: dict[str, Any] = {"legend_label": _short(printable(group))} if is_grouped else {}
        points = plot.scatter(
            "x",
            "y",
            source=ColumnDataSource(data),
            size=size,
            color=colour,
            fill_alpha=0.55,
            line_alpha=0.9,
            **legend,
        )
        plot.add_tools(HoverTool(renderers=[points], tooltips=MAP_TOOLTIP, limit=3, visible=False))
    plot.toolbar.logo = None
    _finish(plot)
    if is_grouped:
        _legend_above(plot)
        plot.legend.click_policy = "hide"
    return plot


def _name(row: Mapping[str, Any]) -> str:
    return printable(f"{row['doc_id']} · chunk {row['chunk']}")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _figure(**options: Any) -> Any:
    given = {"height": HEIGHT, "toolbar_location": None, "tools": "", **options}
    plot: Any = figure(sizing_mode="stretch_width", **given)
    plot.toolbar.logo = None
    return plot


def _finish(plot: Any, x_numbers: str = _SHORT) -> None:
    """The looks that all plots share: no frame, quiet grid, the page's own font and colours."""
    plot.background_fill_color = None
    plot.border_fill_color = None
    plot.outline_line_color = None
    plot.min_border = 4
    plot.grid.grid_line_color = RULE
    for axis in plot.axis:
        axis.axis_line_color = RULE
        axis.major_tick_line_color = RULE
        axis.minor_tick_line_color = None
        axis.major_label_text_color = MUTED
        axis.major_label_text_font = _FONT
        axis.major_label_text_font_size = "13px"
        axis.axis_label_text_color = INK
        axis.axis_label_text_font = _FONT
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = "13px"
        if isinstance(axis.formatter, BasicTickFormatter):
            is_x = axis in plot.xaxis
            axis.formatter = NumeralTickFormatter(format=x_numbers if is_x else _SHORT)


def _legend_above(plot: Any) -> None:
    """A legend that fits on a narrow screen: names in one line where they are short."""
    legend = plot.legend[0]
    plot.add_layout(legend, "above")
    n_chars = sum(len(item.label["value"]) + 4 for item in legend.items)
    legend.orientation = "horizontal" if n_chars <= LEGEND_CHARS else "vertical"
    legend.location = "left"
    legend.background_fill_color = None
    legend.border_line_color = None
    legend.label_text_color = INK
    legend.label_text_font = _FONT
    legend.label_text_font_size = "13px"
    legend.padding = 0
    legend.margin = 0
    legend.spacing = 14
