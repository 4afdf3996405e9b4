"""An estimate in one line: what a run shows of it, and at its end how far it was off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from pipeline.driver.estimate.forecast import Estimate
from pipeline.driver.estimate.totals import Figure
from pipeline.storage.words import counted, duration, number, short


def brief(estimate: Estimate) -> Text:
    """An estimate in one line, for a run."""
    seen = estimate.sample
    time = f", about {duration(estimate.here.seconds)} in all" if estimate.here else ""
    return Text(
        f"estimate: {amount(seen['documents'], 'document')}, "
        f"{short(seen['embedded_tokens'].value)} tokens to embed{time}"
    )


def compared(estimate: Mapping[str, Any], truth: Mapping[str, Any]) -> Text:
    """How far an estimate was off, in one line."""
    words = [f"tokens {number(truth['embedded_tokens'])}"]
    words[0] += _off(estimate["embedded_tokens"], truth["embedded_tokens"])
    if estimate["seconds"]:
        words.append(
            f"time {duration(truth['seconds'])}" + _off(estimate["seconds"], truth["seconds"])
        )
    return Text(f"estimate against truth: {', '.join(words)}")


def _off(foretold: float, came: float) -> str:
    if not came:
        return ""
    share = foretold / came - 1
    return f" (foretold {abs(share):.0%} {'more' if share > 0 else 'less'})" if share else ""


def amount(figure: Figure, noun: str) -> str:
    """An amount with its margin: 'about 3,850 documents ± 4.5 %'."""
    value = round(figure.value)
    if figure.margin == 0:
        return counted(value, noun)
    margin = "" if figure.margin is None else f" ± {percent(figure.margin)}"
    return f"about {counted(value, noun)}{margin}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
