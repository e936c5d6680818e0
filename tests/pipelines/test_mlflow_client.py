"""A database of MLflow's that is whole or absent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.mlflow_client import make_client


def test_whoever_dies_while_the_tables_are_made_leaves_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", _die)
        with pytest.raises(KeyboardInterrupt):
            make_client(uri)
    assert not list((tmp_path / "runs").iterdir())

    make_client(uri).create_experiment("first")
    assert make_client(uri).get_experiment_by_name("first") is not None
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]


def _die(engine: object) -> None:
    raise KeyboardInterrupt


def test_two_that_make_it_at_once_share_one(tmp_path: Path) -> None:
    uri, names = f"sqlite:///{tmp_path}/mlflow.db", ["one", "other"]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: make_client(uri).create_experiment(name), names))
    assert {found.name for found in make_client(uri).search_experiments()} == {"Default", *names}
