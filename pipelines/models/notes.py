"""What a library says to its log, told to the user once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Once(logging.Handler):
    """Prints each different message once to standard error."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.said:
            self.said.add(message)
            print(f"note: {message}", file=sys.stderr)


@contextmanager
def notes() -> Iterator[logging.Logger]:
    """Tell the user what `perceiver` logs, and yield the logger for more of the kind."""
    logger, handler = logging.getLogger("perceiver"), _Once()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
