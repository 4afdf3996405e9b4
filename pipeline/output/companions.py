"""What is replaced after each snapshot for those who do not open one: the list of its files for
other programs, and the dataset card for people.

Whoever commits calls it, and it never raises: the snapshot is whole without them.
"""

from __future__ import annotations

from pipeline.job.spec import JobSpec
from pipeline.output import current_list
from pipeline.output.card import update_card
from pipeline.storage.store import Store


def update_companions(store: Store, spec: JobSpec | None = None) -> None:
    """Bring list and card up to the newest snapshot. spec: as in `update_card`."""
    current_list.bring_up(store)
    update_card(store, spec)
