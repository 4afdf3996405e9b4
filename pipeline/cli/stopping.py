"""Ctrl-C and SIGTERM: the first one stops the command in order, the second one at once.

In: signals. Out: KeyboardInterrupt or SystemExit in the main thread, after a line that says so; or
the end of this process and of all processes below it. Imports nothing heavy, so that it is in place
before anything that is.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from pipeline.driver import interrupts

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
TERMINATION_S = 20.0
"""How long a command takes at most to end in order after SIGTERM. Some supervisors send it to Ray's
processes too, for which a Ray that is starting then waits a minute and more."""
LAST_WORDS = "Terminated. Finished parts are kept; run the same command again to resume."


class Stopping:
    """The handler of SIGINT and SIGTERM for one command. exit_code: what the command ends with
    since a signal came, or since it is over; None before."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        # while Ray starts, descriptor 2 is its log
        self._terminal = os.dup(2)

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a shell
                signal.signal(number, self._on_signal)
        # Registered first, this runs last: then Python drops its handlers, and a signal would
        # replace the exit code.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def is_over(self, exit_code: int) -> None:
        """From now on a signal ends the process at once, with this exit code: nothing is left to be
        kept, and an exception would only become a trace of Python's own clean-up."""
        self.exit_code = exit_code

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and interrupts.is_ours():
            raise KeyboardInterrupt
        if self.exit_code is not None:
            self._end_now()
        self.exit_code = 128 + number
        if number == signal.SIGTERM:
            timer = threading.Timer(TERMINATION_S, self._end_now, [f"{LAST_WORDS}\n"])
            timer.daemon = True
            timer.start()
            raise SystemExit(TERMINATED)
        self._write("Stopping … (Ctrl-C again to stop now)\n")
        raise KeyboardInterrupt

    def _end_now(self, words: str = "") -> None:
        for pid in _below(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        # the live line hid the cursor
        cursor = "\x1b[?25h" if os.isatty(self._terminal) else ""
        self._write(cursor + (words or (cursor and "\n")))
        os._exit(self.exit_code or 1)

    def _write(self, text: str) -> None:
        """Past the console, whose lock the interrupted code may hold. On a terminal it replaces the
        live line, which is drawn again below it."""
        start = "\r\x1b[2K" if os.isatty(self._terminal) and text.endswith("\n") else ""
        try:
            os.write(self._terminal, (start + text).encode())
        except OSError:  # nobody listens any more
            return


def _below(pid: int) -> Iterator[int]:
    """All descendants of a process, parents first. Empty where there is no /proc: there Ray's
    processes end by themselves."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in path.read_text().split()]
        except OSError:  # a thread that has just ended
            continue
        for child in children:
            yield child
            yield from _below(child)
