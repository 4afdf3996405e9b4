"""A progress bar for a run that is started from a notebook.

In: the `Progress` of a run. Out: one line of tqdm, a widget where the notebook has them. A script
stays silent: only a Jupyter kernel gets a bar by itself, and `tqdm_bar()` can be given as `watch`
anywhere.
"""

from __future__ import annotations

import sys
from typing import Any

from pipeline.driver.showing import Watch, log_notes
from pipeline.observe.progress import DONE, EMBEDDING, Progress
from pipeline.storage.words import duration, number, short

_FORMAT = "{percentage:3.0f}%|{bar}| {desc}"


def default_watch() -> Watch:
    """What a run shows for which no `watch` was given: a bar in a Jupyter kernel, otherwise notes
    in Python's log."""
    return tqdm_bar() if in_notebook() else log_notes


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel. IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def tqdm_bar(**options: Any) -> Watch:
    """A watch that shows phase, share, documents, tokens a second, rejects and the time that is
    left. options: of tqdm, for instance `file`."""
    from tqdm.auto import tqdm

    bar = tqdm(total=1.0, bar_format=_FORMAT, **options)

    def show(progress: Progress, notes: list[str]) -> None:
        for note in notes:
            bar.write(note, file=sys.stderr)
        bar.n = progress.fraction if progress.phase != DONE else 1.0
        bar.set_description_str(_figures(progress))
        if progress.phase == DONE:
            bar.close()

    return show


def _figures(progress: Progress) -> str:
    n_documents = progress.live("n_documents")
    n_rejects = progress.live("n_rejects")
    left = f"{duration(progress.eta_s)} left" if progress.phase == EMBEDDING else ""
    figures = [
        progress.phase,
        duration(progress.elapsed_s),
        f"{number(n_documents)} documents" if n_documents else "",
        f"{short(progress.tokens_per_s)} tokens/s" if progress.tokens_per_s else "",
        f"{number(n_rejects)} rejects" if n_rejects else "",
        left if progress.eta_s is not None else "",
    ]
    return ", ".join(filter(None, figures))
