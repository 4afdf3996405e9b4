"""The command line: runs one command, and turns whatever ends it into a message and an exit code.

Exit codes: 0 done, else those of `pipeline/errors.py`; 130 and 143: stopped by a signal. A message
goes to standard error, on one screen and without a trace; `--debug` puts the trace above it, and
`--quiet` leaves out every other message but the last line of a run. With `--json`, standard output
gets one JSON object in any case: the answer, or `{"error": message, "type": class of the error,
"exit_code": code}`. Everything heavy is imported after the signal handlers are in place. Where a
library crashes the process itself, Python says on standard error which line has called it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from typing import NoReturn

from pipeline.cli.stopping import Stopping
from pipeline.driver.interrupts import held_back
from pipeline.storage.garbage import leave_all, uncollected

_ANYWHERE = ("--debug", "--quiet")
"""Options that can stand before and after a command."""


def main() -> NoReturn:
    """Run one command and exit."""
    stopping = Stopping()
    arguments = sys.argv[1:]
    n_options = arguments.index("--") if "--" in arguments else len(arguments)
    options = arguments[:n_options]
    as_json = "--json" in options
    is_debug = "--debug" in options
    is_quiet = "--quiet" in options
    arguments[:n_options] = [option for option in options if option not in _ANYWHERE]
    try:
        stopping.install()  # within `try`: what it raises from here on is described
        with contextlib.suppress(RuntimeError, OSError, ValueError, AttributeError):  # no stderr
            faulthandler.enable()
        # some libraries do not survive an exception while they are imported
        with held_back(), uncollected():
            from pipeline.cli.commands import invoke
            from pipeline.cli.terminal import accept_any_text
        accept_any_text()
        code = invoke(arguments, is_quiet=is_quiet)
    except BaseException as error:  # noqa: BLE001 - the last resort: nothing ends as a trace
        with held_back():
            from pipeline.cli.failures import describe, show
        failure = describe(error, stopping.exit_code)
        show(failure, as_json=as_json, trace=error if is_debug else None)
        code = failure.exit_code
    stopping.is_over(code)
    _flush()
    leave_all()
    sys.exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # its reader is gone: Python would say so once more while it exits
            sys.stdout = sys.stderr = None
            return
