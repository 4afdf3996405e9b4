"""The dataset card of an output: `README.md` for people and the Hugging Face Hub, `croissant.json`
for machines (MLCommons' Croissant), both about the newest snapshot.

    records of the output ─► facts ─► readme, croissant ─► update

Both files are derived from records, so they are the only objects of an output that are replaced:
`update_card` brings them up to the newest snapshot after a commit. A card that cannot be written
costs a warning and never a snapshot; the next run makes it good.
"""

from pipeline.output.card.update import update_card

__all__ = ["update_card"]
