"""What all tests share: no network, no traces outside temporary folders, one thread and one seed."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

# Set here, because the libraries read these when a test module imports them.
_hf_home = tempfile.TemporaryDirectory()
os.environ.update(
    HF_HOME=_hf_home.name, HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0", MLFLOW_DISABLE_TELEMETRY="true"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """An empty folder in place of the user's cache."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds the real data sets as imdb/ and mnist/."""
    folder = os.environ.get("PERCEIVER_TEST_DATA")
    if not folder:
        pytest.skip("PERCEIVER_TEST_DATA does not name a folder with imdb/ and mnist/")
    return Path(folder)
