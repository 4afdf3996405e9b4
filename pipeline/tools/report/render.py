"""A report as one HTML page or as Markdown.

In: findings. Out: text. Both forms show the same sections (`blocks`). Whatever a template puts in
is escaped unless it was made here for that place, since ids, texts and paths are written by
strangers: control characters are shown as `\\x1b`, markup as itself. The page carries a policy that
allows no request and no script but its own two, which it names by their hashes.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.errors import SpecError
from pipeline.storage.printable import printable, printable_json, printable_lines
from pipeline.tools.report import ending, input, overview, palette, vectors, work
from pipeline.tools.report.blocks import Plot, Section
from pipeline.tools.report.findings import Findings

TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!$])")


def sections(f: Findings) -> list[Section]:
    """All sections in their order."""
    estimate = work.estimate(f)
    return [
        overview.overview(f),
        work.snapshots(f),
        input.shards(f),
        input.rejects(f),
        work.throughput(f),
        work.time_by_stage(f),
        *([estimate] if estimate else []),
        input.lengths(f),
        vectors.norms(f),
        vectors.flat_map(f),
        vectors.duplicates(f),
        vectors.neighbours(f),
        ending.licences(f),
        ending.reading(f),
        ending.about(f),
    ]


def html_page(f: Findings, made: datetime.datetime) -> str:
    """One page that needs nothing else. Raises SpecError where Bokeh is not installed."""
    try:
        from bokeh.resources import Resources

        from pipeline.tools.report import plots
    except ImportError as error:
        raise SpecError(
            f"report: {error}. Install what it needs: pip install '.[report]' in a clone of this "
            "package, or pip install 'corpus-embed[report]' where an index has it. Or write "
            "Markdown, which needs nothing more: --format md."
        ) from error
    all_sections = sections(f)
    drawn = {
        block.id: plots.plot_json(block.draw(plots))
        for section in all_sections
        for block in section.blocks
        if isinstance(block, Plot)
    }
    library = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    light = {name.lower(): value for name, value in vars(palette).items() if _is_colour(value)}
    environment = _environment(autoescape=True, finalize=_printable)
    environment.globals["variables"] = _variables
    return environment.get_template("page.html.jinja").render(
        **_context(f, all_sections, made),
        palette={
            "light": light,
            "dark": {name: palette.DARK[value] for name, value in light.items()},
        },
        policy=_policy(library, script),
        plots=_json_in_html({"dark": palette.DARK, "plots": drawn}),
        library=Markup(library),  # noqa: S704  Bokeh's own file
        script=Markup(script),  # noqa: S704  a file of this package
    )


def markdown(f: Findings, made: datetime.datetime) -> str:
    """The same sections without plots; histograms in characters."""
    environment = _environment(autoescape=False, finalize=_markdown)
    environment.filters["code"] = _Code
    template = environment.get_template("page.md.jinja")
    return template.render(**_context(f, sections(f), made)).strip() + "\n"


def _context(f: Findings, all_sections: list[Section], made: datetime.datetime) -> dict[str, Any]:
    return {
        "f": f,
        "head": f.loaded.snapshot,
        "summary": overview.summary(f),
        "cards": overview.cards(f),
        "sections": all_sections,
        "made": f"Made on {made:%Y-%m-%d %H:%M} UTC.",
    }


def _environment(**options: Any) -> jinja2.Environment:
    return jinja2.Environment(  # noqa: S701  pages escape HTML, Markdown what that needs
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def _printable(value: Any) -> Any:
    """What the page's template shows of a value, before it is escaped."""
    return value if isinstance(value, Markup) else printable_lines(str(value))


class _Code(str):
    """Code of this package, between fences: Markdown shows it as it is."""


def _markdown(value: Any) -> str:
    """Plain text that Markdown, HTML within it and its tables show as it is."""
    if isinstance(value, _Code):
        return printable_lines(value)
    text = printable(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _variables(colours: dict[str, str]) -> Markup:
    text = " ".join(f"--{name}: {colour};" for name, colour in sorted(colours.items()))
    return Markup(text)  # noqa: S704  names and colours of `palette`


def _is_colour(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("#")


def _json_in_html(value: Any) -> Markup:
    """JSON that no HTML parser can take for the end of the script that it is in."""
    text = printable_json(value, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704  escaped above


def _policy(*scripts: str) -> Markup:
    """The page's Content-Security-Policy: nothing but these scripts, and styles and small images
    that stand in the page. Bokeh sets styles from its scripts, which a hash cannot allow."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return Markup(  # noqa: S704  hashes
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
