"""The page of a report in a real browser: it draws its plots, asks for nothing, fits on narrow and
wide screens, follows the colour scheme, and shows hostile texts as texts.

Oracle: Chromium, by what it requests, logs and lays out. Skipped where it is not installed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.tools.report.report import report
from tests.support import stand_in
from tests.support.browser import Browser, browser, chromium
from tests.support.outputs import write_shard

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: chromium)"),
]
DRAWN = "document.documentElement.dataset.drawn"
N_PLOTS = "Object.keys(JSON.parse(document.getElementById('plots').textContent).plots).length"
EVERY_ELEMENT = """
    const every = (root) => [...root.querySelectorAll('*')]
        .flatMap((element) => [element, ...(element.shadowRoot ? every(element.shadowRoot) : [])]);
"""
HOSTILE = "<img src=x onerror='window.harmed=1'><script>window.harmed=2</script> {safe} @{x}"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    rows = [
        {"id": f"{n}{HOSTILE}", "text": f"{HOSTILE} {n}", "lang": f"{'ab'[n % 2]}{HOSTILE}"}
        for n in range(60)
    ]
    rejects = [{"id": f"{n}{HOSTILE * 20}", "text": None} for n in range(4)]
    write_shard(root / "in/a.jsonl", [*rows, *rejects])
    spec = stand_in.make_spec(root / "in", root / "out", input={"keep_columns": ["lang"]})
    stand_in.run(spec)
    report(str(root / "out")).write(str(root / "page.html"))
    return root / "page.html"


def in_browser(folder: Path, look: Callable[[Browser], Awaitable[Any]]) -> tuple[Any, Browser]:
    """What `look` sees in a browser, and the browser's notes."""

    async def visit() -> tuple[Any, Browser]:
        program = chromium()
        assert program
        async with browser(program, folder) as tab:
            return await look(tab), tab

    return asyncio.run(visit())


async def show(tab: Browser, page: Path, **screen: Any) -> None:
    """Load the page and wait for its plots."""
    await tab.show(page, **screen)
    await tab.until(f"document.readyState == 'complete' && {DRAWN} == {N_PLOTS}")


def test_it_draws_and_fits_and_asks_for_nothing_on_every_screen(page: Path, tmp_path: Path) -> None:
    layout = f"""(() => {{ {EVERY_ELEMENT}
        const style = getComputedStyle(document.documentElement);
        const [paper, ink] = ['--paper', '--ink'].map((one) => style.getPropertyValue(one).trim());
        return JSON.stringify({{
            canvases: every(document).filter((one) => one.tagName == 'CANVAS').length,
            overflow: document.documentElement.scrollWidth - innerWidth,
            inked: JSON.stringify(Bokeh.documents.map((one) => one.to_json())).includes(ink),
            paper,
        }}); }})()"""
    papers = {"light": "#ffffff", "dark": "#151b22"}

    async def look(tab: Browser) -> None:
        for width, scheme in itertools.product((400, 1400), papers):
            await show(tab, page, width=width, scheme=scheme)
            seen = json.loads(await tab.value(layout))
            assert seen["canvases"] >= await tab.value(N_PLOTS) >= 5
            assert seen["overflow"] <= 0, width
            assert seen["paper"] == papers[scheme]
            assert seen["inked"], "the plots have the colours of the scheme"

    _, tab = in_browser(tmp_path, look)
    assert set(tab.requests) == {page.resolve().as_uri()}
    assert all("log level" in line for line in tab.console), tab.console


def test_the_plots_follow_a_change_of_the_scheme(page: Path, tmp_path: Path) -> None:
    async def look(tab: Browser) -> list[bool]:
        await show(tab, page, width=800)
        is_dark = "JSON.stringify(Bokeh.documents.map((one) => one.to_json())).includes('#e7ebf0')"
        before = await tab.value(is_dark)
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        await tab.call("Emulation.setEmulatedMedia", features=features)
        await tab.until(is_dark)
        return [before, await tab.value(is_dark)]

    assert in_browser(tmp_path, look)[0] == [False, True]


def test_a_point_of_the_map_shows_its_text_and_no_markup_of_it(page: Path, tmp_path: Path) -> None:
    async def look(tab: Browser) -> dict[str, Any]:
        await show(tab, page, width=1200)
        await tab.value(
            "document.getElementById('plot-map')"
            ".scrollIntoView({block: 'center', behavior: 'instant'})"
        )
        box = json.loads(
            await tab.value(
                "JSON.stringify(document.getElementById('plot-map').getBoundingClientRect())"
            )
        )
        tips = f"""(() => {{ {EVERY_ELEMENT} return every(document)
            .filter((one) => one.tagName == 'DIV' && one.style.maxWidth)
            .map((one) => one.textContent).join('\\n'); }})()"""
        text = ""
        for step in range(40 * 25):
            across, down = step % 40 + 0.5, step // 40 + 0.5
            await tab.point(
                box["x"] + box["width"] * across / 40, box["y"] + box["height"] * down / 25
            )
            await asyncio.sleep(0.01)  # the box comes with the next frame
            if step % 5 == 4 and "{safe}" in (text := await tab.value(tips)):
                break
        return {
            "text": text,
            "images": await tab.value(
                f"(() => {{ {EVERY_ELEMENT} return every(document)"
                ".filter((one) => ['IMG', 'SCRIPT'].includes(one.tagName)).length; })()"
            ),
            "harmed": await tab.value("window.harmed"),
        }

    seen, tab = in_browser(tmp_path, look)
    assert "<img src=x onerror='window.harmed=1'>" in seen["text"]
    assert "{safe} @{x}" in seen["text"]
    assert seen["images"] == 3  # the page's own scripts
    assert seen["harmed"] is None
    assert tab.requests == [page.resolve().as_uri()]
