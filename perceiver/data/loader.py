"""A loader that has the next batches ready when training asks, and that knows how long training had to wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from perceiver.cores import cores_kept, use_one_core

_BATCHES_AHEAD = 2
_STOP_SECONDS = 0.1  # between two looks of a thread whether its batches are still wanted

_BEGUN, _END = object(), object()


class ReadAheadLoader(DataLoader[Any]):
    """Assembles batches in a thread while the training step before them runs.

    What a batch holds depends on its samples and epoch alone (see perceiver.data.sampling), so that reading ahead
    changes nothing but the time.
    """

    seconds_waited = 0.0
    """Time for which whoever iterates had to wait for a batch, over all passes."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        # The thread starts with the first batch, not before: Lightning makes iterators that it never uses.
        return self._read_ahead(batches)

    def _read_ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        ahead: queue.Queue[Any] = queue.Queue(_BATCHES_AHEAD)
        abandoned = threading.Event()
        thread = threading.Thread(target=_fill, args=(batches, ahead, abandoned), name="read-ahead", daemon=True)
        with cores_kept():
            thread.start()
            assert ahead.get() is _BEGUN
        try:
            while True:
                asked = time.perf_counter()
                item = ahead.get()
                self.seconds_waited += time.perf_counter() - asked
                if item is _END:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            abandoned.set()
            thread.join()  # before another pass asks the same loader processes


def _fill(batches: Iterator[Any], ahead: queue.Queue[Any], abandoned: threading.Event) -> None:
    """Put the batches, then the end or whatever error stopped them, into the queue while somebody takes them."""

    def put(item: Any) -> None:
        waits = True
        while waits and not abandoned.is_set():
            try:
                ahead.put(item, timeout=_STOP_SECONDS)
                waits = False
            except queue.Full:
                continue

    use_one_core()
    put(_BEGUN)
    try:
        for batch in batches:
            put(batch)
            if abandoned.is_set():
                return
        put(_END)
    except BaseException as error:  # it is raised where the batches are taken
        put(error)
