"""What `plan` foretells of a run, and what a run's end compares with it.

    splits to do ─► sample ─► totals with margins ─┐
    recorded or measured rates ────────────────────┼─► estimate: tokens, time, bytes, money
    prices, peaks and memory of devices ───────────┘

Neither torch nor ray is imported.
"""
