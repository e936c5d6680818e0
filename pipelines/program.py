"""How a command line ends its process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn


def run_program(main: Callable[[], None]) -> NoReturn:
    """Do what a command line says, and end the process with the status that `main` exits with.

    Where Ray was used, the interpreter is not taken down: threads of Ray's may still run in it, and now and then crash
    the process, which then ends with another status. What others want to tidy up at the end is tidied up.

    Args:
        main: Takes the command line from sys.argv.
    """
    try:
        main()
        status = 0
    except SystemExit as error:
        status = _status_of(error)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    if "ray" not in sys.modules:
        sys.exit(status)
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # ends the threads of executors, waits for all others
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _status_of(error: SystemExit) -> int:
    """Return the status that Python would exit with, after printing what it would print."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)
    return 1
