"""Export a snapshot to another format: one module a target, and `run.py` that calls it."""
