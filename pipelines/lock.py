"""One driver at a time on a run: a second one would train over the first one's checkpoints and journal.

On a local (or mounted) file system the operating system holds the lock and gives it up when its holder dies. Object
stores have no locks: there the holder renews a lease, and one that isn't renewed any more is taken over.
"""

from __future__ import annotations

import _thread
import getpass
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from perceiver.errors import UserError
from pipelines.storage import Storage

LOCK, HOLDER = ".lock", ".lock.json"

_LOCAL_SECONDS = 1.0  # a holder that is ending may be done by then
RENEWAL_SECONDS = 1.0
WATCH_SECONDS = 4.0  # a lease that stays the same for so long has nobody who renews it


class LockedError(UserError):
    """Another driver holds the run."""


@contextmanager
def run_lock(folder: Storage, name: str = "run_name") -> Iterator[None]:
    """Hold a run's folder.

    Args:
        folder: The run's folder; it is made if it is missing.
        name: Option that names the run, for the error message.

    Raises:
        LockedError: If another driver holds it; its text says who. Found within five seconds.
    """
    with _locked_file(folder, name) if folder.is_local else _lease(folder, name):
        yield


def check_unlocked(folder: Storage, name: str = "run_name") -> None:
    """Raise a LockedError if a driver holds a folder, without leaving anything where none ever did."""
    if (folder / LOCK).exists() or (folder / HOLDER).exists():
        with run_lock(folder, name):
            pass


@contextmanager
def _locked_file(folder: Storage, name: str) -> Iterator[None]:
    folder.local_path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.local_path / LOCK)
    try:
        lock.acquire(timeout=_LOCAL_SECONDS)
    except Timeout:
        raise _locked(folder, name, _read(folder)) from None
    try:
        (folder / HOLDER).write_json(_identity())  # not in the locked file, which an attempt to lock empties
        yield
    finally:
        (folder / HOLDER).delete()
        lock.release()


@contextmanager
def _lease(folder: Storage, name: str) -> Iterator[None]:
    found = _read(folder)
    if found is not None and _is_renewed(folder, found):
        raise _locked(folder, name, found)
    mine = {**_identity(), "token": uuid.uuid4().hex}
    _renew(folder, mine)
    time.sleep(2 * RENEWAL_SECONDS)  # of two that came at the same time, the one that wrote last has it
    written = _read(folder) or {}
    if written.get("token") != mine["token"]:
        raise _locked(folder, name, written)
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(folder, mine, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if (_read(folder) or {}).get("token") == mine["token"]:
            (folder / HOLDER).delete()


def _keep(folder: Storage, mine: dict[str, Any], ended: threading.Event) -> None:
    """Renew a lease until it has ended; where somebody took it over, stop this program as Ctrl-C does."""
    while not ended.wait(RENEWAL_SECONDS):
        try:
            found = _read(folder)
            if found is not None and found.get("token") != mine["token"]:
                print(f"stopping: {_described(found)} took over {folder}", file=sys.stderr, flush=True)
                _thread.interrupt_main()
                return
            _renew(folder, mine)
        except Exception:  # file systems raise errors of many kinds; the next renewal may succeed
            continue


def _renew(folder: Storage, mine: dict[str, Any]) -> None:
    (folder / HOLDER).write_json({**mine, "renewed": time.time()})


def _is_renewed(folder: Storage, found: dict[str, Any]) -> bool:
    """Watch a lease for a while; clocks, which may differ between machines, don't matter."""
    if found.get("host") == socket.gethostname() and not _is_running(found.get("pid")):
        return False
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(RENEWAL_SECONDS / 2)
        now = _read(folder)
        if now is None:
            return False
        if now != found:
            return True
    return False


def _is_running(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _read(folder: Storage) -> dict[str, Any] | None:
    try:
        content = (folder / HOLDER).read_json()
    except ValueError:  # it is being written on a file system that shows half of it
        return {}
    return content if isinstance(content, dict) else None


def _identity() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        user = "unknown"
    return {"host": socket.gethostname(), "pid": os.getpid(), "user": user, "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _described(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} of {holder.get('user')} on {holder.get('host')}"


def _locked(folder: Storage, name: str, holder: dict[str, Any] | None) -> LockedError:
    by = f" by {_described(holder)} since {holder.get('since')}" if holder and holder.get("pid") else ""
    return LockedError(f"{folder} is in use{by}: wait until it has ended, stop it, or choose another {name}")
