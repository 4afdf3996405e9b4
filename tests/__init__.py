"""The tests of the package, a folder a room. What they share is in `tests/support/`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The root of the checkout."""
