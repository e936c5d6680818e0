"""The connection to MLflow: where it is, whether anybody is there, and a client that neither prints nor blocks long."""

from __future__ import annotations

import http.client
import logging
import os
import re
import sqlite3
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perceiver.files import sync
from pipelines.environment import environment

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.config import TrackingConfig
    from pipelines.storage import Storage

_ANSWER_SECONDS = 8.0  # a server that takes 5 s is slow, not down; a user is told of one that is down within 10 s
_ENVIRONMENT = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The tracker tries again by itself, and knows what may have arrived; if MLflow's client made a call twice whose
    # first answer was lost, there would be two runs.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Nobody but the tracker's thread waits, so that a slow server may take its time for a thousand points or a model.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(config: TrackingConfig, storage: Storage) -> str:
    """Return where MLflow keeps its runs: MLFLOW_TRACKING_URI, else the configured URI, else a database of our own.

    Args:
        config: The tracking configuration.
        storage: The storage path; the database lies in it if it is local, else in the working directory.
    """
    folder = storage.local_path if storage.is_local else Path.cwd()
    return os.environ.get("MLFLOW_TRACKING_URI") or config.uri or f"sqlite:///{folder / 'mlflow.db'}"


def without_secrets(text: str) -> str:
    """Return a URI, or a text with URIs in it, without their users and passwords."""
    return re.sub(r"//[^/\s]*@", "//", text)


def make_client(uri: str) -> MlflowClient:
    """Return a client, once somebody answers.

    Raises:
        ConnectionError: If there is a server at the URI, but it doesn't answer; raised within about 8 s.
    """
    if uri.startswith(("http://", "https://")):
        _check_answers(uri)  # before the import, which takes seconds
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for logger in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    if (database := database_of(uri)) is not None and not database.exists():
        _create_database(database)
    return MlflowClient(uri)


@contextmanager
def default_mlflow(uri: str) -> Iterator[None]:
    """Let MLflow look here where it is told nothing else, as its registry does even where it is told."""
    with environment(dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), uri)):
        yield


def artifact_location(uri: str) -> str | None:
    """Return where a new experiment keeps artifacts: beside an SQLite database; a server decides by itself."""
    database = database_of(uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite URI."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _create_database(database: Path) -> None:
    """Create an SQLite database that has MLflow's tables from its first moment on.

    MLflow makes the file first and then one table after another: a process that dies between, or two that do it at
    once, leave a database that MLflow refuses ever after.
    """
    from mlflow import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    whole = database.with_name(f".{database.name}.{uuid.uuid4().hex}.tmp")
    try:
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / database.name
            MlflowClient(f"sqlite:///{first}").search_experiments(max_results=1)
            with closing(sqlite3.connect(first)) as source, closing(sqlite3.connect(whole)) as target:
                source.backup(target)
        sync(whole)
        _name_unless_taken(whole, database)
    finally:
        whole.unlink(missing_ok=True)


def _name_unless_taken(file: Path, name: Path) -> None:
    """Give a file a name, unless another process was faster."""
    try:
        os.link(file, name)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not name.exists():
            file.replace(name)
    sync(name.parent)


def _check_answers(uri: str) -> None:
    """Raise a ConnectionError unless a server says anything at all, be it that it wants a password.

    It asks from a thread, because nothing else bounds how long the look-up of a name takes.
    """
    shown = without_secrets(uri)
    reasons: list[str] = []
    asking = threading.Thread(target=lambda: reasons.append(_ask(shown)), name="mlflow-probe", daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    reason = reasons[0] if reasons else f"no answer within {_ANSWER_SECONDS:.0f} s"
    if reason:
        raise ConnectionError(f"{shown}: {reason}")


def _ask(uri: str) -> str:
    """Return why a server is of no use now; nothing if it is there."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:  # from 500 on, a proxy speaks for a server that is down
        return f"{error.code} {error.reason}" if error.code >= 500 else ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(
            cause, ssl.SSLError
        ):  # who is there speaks TLS; MLflow's client knows which certificates to trust
            return ""
        return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return ""
