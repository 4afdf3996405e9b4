"""The colours of a report, in a light and a dark scheme.

Plots are drawn in the light colours; the page replaces each of them by its dark counterpart where
the reader's system asks for it (`templates/page.js`). Text and lines have a contrast of at least
4.5 to the background in both, marks of at least 3. The eight colours of groups are told apart with
the common kinds of colour blindness too (after Okabe and Ito 2008, darkened for white paper).
"""

from __future__ import annotations

INK = "#1d2733"
MUTED = "#5b6775"
RULE = "#dfe4ea"
ACCENT = "#2563a8"
SECOND = "#b45309"
THIRD = "#0f766e"
FAINT = "#8a94a1"
PAPER = "#ffffff"
GROUPS = (ACCENT, SECOND, THIRD, "#9d3c8c", "#7a6a00", "#c0392b", "#4d5fc1", FAINT)

DARK = {
    INK: "#e7ebf0",
    MUTED: "#a3afbc",
    RULE: "#323c48",
    ACCENT: "#7ab3ef",
    SECOND: "#f0a35e",
    THIRD: "#5cc8bb",
    FAINT: "#7d8997",
    PAPER: "#151b22",
    "#9d3c8c": "#df8fd0",
    "#7a6a00": "#d3c25a",
    "#c0392b": "#f08a80",
    "#4d5fc1": "#a0acf5",
}
"""Light colour -> dark colour."""
