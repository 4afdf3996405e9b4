"""The page of a report shows whatever an output holds as text: no markup, script or control
character of it gets through.

Oracle: Python's own HTML parser, and the strings that the test wrote.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import itertools
import json
import re

import pytest

from pipeline.tools.report.report import report
from tests.support import stand_in
from tests.support.outputs import write_shard

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "</textarea></style><svg onload=alert(3)>",
    '"><a href="javascript:alert(4)">',
    "{{ 7 * 7 }}{% raw %}",
    "line\u2028separator\u2029",
    "\x1b]0;title\x07 \x9b31m \u202eturned",
    "| a | b |\n# heading\n```\n[link](javascript:x) ![i](http://example.org/x.png) <b>",
    "a" * 100_000,
    "<!--<script>",
    "&lt;b&gt; @id{safe} @{text}",
    "'-alert(5)-'",
)
VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, its text, and its scripts. unclosed: elements
    without an end."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.unclosed: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report") / "<b>hostile"
    rows = [
        {"id": f"{n}{text[:300]}", "text": f"{text} {n}", "lang": text[:80]}
        for n, text in enumerate(HOSTILE)
    ]
    rejects = [{"id": f"r{text[:300]}", "text": None} for text in HOSTILE]
    name = "<img src=x onerror=alert(6)>.jsonl"
    write_shard(root / "in" / name, [*rows, *rows, *rejects])
    stand_in.run(
        stand_in.make_spec(
            root / "in",
            root / "out",
            input={"keep_columns": ["lang"]},
            output={"partition_by": ["lang"]},
            prepare={"min_chars": 3},
        )
    )
    return str(root / "out")


@pytest.fixture(scope="module")
def page(output: str) -> str:
    return report(output, near=0.5).text


def test_no_element_and_no_handler_comes_from_the_output(page: str) -> None:
    parsed = Page(page)
    assert not parsed.unclosed
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"img", "svg", "a" * 9, "iframe", "object", "link", "form", "b", "input"}
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src"):
            assert re.fullmatch(r"#[a-z]+", attributes.get(name) or "#x")
    assert len(parsed.scripts) == 3
    text = "".join(parsed.words)
    assert "</script><img src=x onerror=alert(2)>" in text
    assert "{{ 7 * 7 }}" in text


def test_no_control_character_and_no_turn_of_direction_is_on_the_page(page: str) -> None:
    kept = page.replace(Page(page).scripts[1], "")  # BokehJS itself
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ufeff]", kept)
    assert r"\x1b]0;title\x07" in "".join(Page(page).words)


def test_long_texts_are_cut(page: str) -> None:
    longest = max(re.findall(r"a{100,}", page), key=len)
    assert len(longest) <= 200


def test_the_data_of_the_plots_is_json_that_ends_no_script(page: str) -> None:
    data = Page(page).scripts[0]
    assert not set("<>&") & set(data)
    plots = json.loads(data)["plots"]
    assert {"map", "lengths", "norms", "nearest", "versions"} <= plots.keys()
    assert r"</script><img src=x onerror=alert(2)>" in json.dumps(plots["map"])


def test_the_policy_allows_its_own_two_scripts_and_no_request(page: str) -> None:
    parsed = Page(page)
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in parsed.scripts[1:]
    ]
    assert rules == {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    first = [tag for tag, _ in parsed.elements][:4]
    assert first == ["html", "head", "meta", "meta"]  # nothing stands before the policy


def test_headings_are_in_order_and_tables_and_plots_are_named(page: str) -> None:
    parsed = Page(page)
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("table") == tags.count("caption") > 5
    images = [a for tag, a in parsed.elements if a.get("role") == "img"]
    assert images
    assert all(attributes["aria-label"] for attributes in images)
    anchors = {a["href"] for tag, a in parsed.elements if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in parsed.elements if tag == "section"}


def test_markdown_shows_markup_as_text(output: str) -> None:
    text = report(output, format="md", near=0.5).text
    outside = re.sub(r"^```\w+\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<" not in outside
    assert not re.search(r"(?<!\\)!\[|(?<!\\)\]\(", outside)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)
    headings = [line for line in outside.splitlines() if line.startswith("# ")]
    assert headings == ["# stand-in"]
    for table in re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_colours_have_enough_contrast_in_both_schemes() -> None:
    """The formula of WCAG 2.2 for relative luminance and contrast."""
    from pipeline.tools.report import palette

    def luminance(colour: str) -> float:
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for scheme in ({colour: colour for colour in palette.DARK}, palette.DARK):
        paper = scheme[palette.PAPER]
        for colour in (palette.INK, palette.MUTED, palette.ACCENT, palette.SECOND, palette.THIRD):
            assert contrast(scheme[colour], paper) >= 4.5
        for colour in palette.GROUPS:
            assert contrast(scheme[colour], paper) >= 3
    assert set(palette.GROUPS) <= palette.DARK.keys()
