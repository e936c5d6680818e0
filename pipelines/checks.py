"""What a run needs of this machine, of its storage, of MLflow and of its data, looked at before it starts."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, ParamSpec

from perceiver.errors import UserError
from pipelines.config import StageConfig, TextClassifierStageConfig, TrackingConfig
from pipelines.storage import Storage

Status = Literal["ok", "warning", "failure"]
P = ParamSpec("P")

PACKAGES = ("ray", "torch", "pytorch-lightning", "mlflow")
_OLDEST_PYTHON = (3, 11)
_GB = 1e9
_FULL_GB, _SCARCE_GB = 1.0, 10.0
_SHARED_MEMORY_GB, _SHARED_MEMORY_SHARE = 1.0, 0.3
_MLFLOW_SECONDS = 5.0


@dataclass(frozen=True)
class Check:
    """What was found about one thing that a run needs."""

    name: str
    """The thing."""
    status: Status
    """Whether a run would go well (ok), might not (warning), or would fail (failure)."""
    found: str
    """What is there."""
    advice: str = ""
    """How to mend it."""


def checking(name: str) -> Callable[[Callable[P, Check]], Callable[P, Check]]:
    """Let a check never raise: what it raises is a failure of that name."""

    def decorate(function: Callable[P, Check]) -> Callable[P, Check]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Check:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                return failure_of(name, error)

        return guarded

    return decorate


def failure_of(name: str, error: Exception) -> Check:
    """Return the failure that an error stands for; a UserError ends with its advice."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, UserError):
        return Check(name, "failure", f"{type(error).__name__}: {text}"[:300])
    found, colon, advice = text.rpartition(": ")
    return Check(name, "failure", found, advice) if colon else Check(name, "failure", text)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that have to match on a cluster; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@checking("versions")
def check_versions() -> Check:
    """Check that Python is new enough and that nothing is missing."""
    versions = installed_versions()
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if sys.version_info < _OLDEST_PYTHON:
        return Check("versions", "failure", found, "install Python 3.11 or newer")
    if missing := [package for package in PACKAGES if package not in versions]:
        return Check("versions", "failure", f"{found}; no {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("versions", "ok", found)


@checking("GPUs here")
def check_gpus() -> Check:
    """Check that PyTorch sees the GPUs of this machine, if it has a driver for any."""
    import torch

    if count := torch.cuda.device_count():
        kinds = sorted({torch.cuda.get_device_name(i) for i in range(count)})
        return Check("GPUs here", "ok", f"{count} x {', '.join(kinds)}, CUDA {torch.version.cuda}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Check("GPUs here", "ok", "hidden (CUDA_VISIBLE_DEVICES is empty)")
    if has_nvidia_driver():
        found = f"an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU"
        advice = "install a build of PyTorch for the driver's CUDA version, or a newer driver; nvidia-smi shows it"
        return Check("GPUs here", "warning", found, advice)
    return Check("GPUs here", "ok", "none")


def has_nvidia_driver() -> bool:
    """Return whether this machine has a driver for NVIDIA's GPUs."""
    return Path("/proc/driver/nvidia/version").exists()


@checking("shared memory")
def check_shared_memory(starts_cluster: bool) -> Check:
    """Check /dev/shm, where Ray's objects and the batches of loader processes lie.

    Args:
        starts_cluster: Whether a run would start a Ray cluster on this machine, which wants a third of its memory.
    """
    total = shutil.disk_usage("/dev/shm").total
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{total / _GB:.1f} GB in /dev/shm"
    too_small = starts_cluster and total < _SHARED_MEMORY_SHARE * memory
    if total < _SHARED_MEMORY_GB * _GB or too_small:
        return Check("shared memory", "warning", found, "give a container more of it, as in docker run --shm-size=8gb")
    return Check("shared memory", "ok", found)


def check_disk(name: str, folder: str | Path) -> Check:
    """Check the space that is left where a folder is, or will be.

    Args:
        name: What the folder is for.
        folder: The folder; ~ stands for the home folder.
    """
    return _check_disk(f"disk: {name}", Path(folder).expanduser().absolute())


@checking("disk")
def _check_disk(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free / _GB
    found = f"{free:.1f} GB free at {folder}"
    if free < _SCARCE_GB:
        return Check(
            name, "failure" if free < _FULL_GB else "warning", found, "free some space, or name another folder"
        )
    return Check(name, "ok", found)


def ray_folder() -> Path:
    """Return where a Ray cluster of this machine's own keeps its logs and spilled objects."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


@contextmanager
def traceless(storage: Storage) -> Iterator[None]:
    """Remove afterwards the local folders that were not there before, and are empty."""
    folders = (storage.local_path, *storage.local_path.parents) if storage.is_local else ()
    missing = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@checking("storage")
def check_storage(uri: str) -> Check:
    """Check that this process can write to the storage path; nothing of the trial is left behind."""
    storage = Storage.from_uri(uri)
    with traceless(storage):
        storage.check_writable()
    return Check("storage", "ok", f"{storage}: writable from here")


@checking("MLflow")
def check_mlflow(config: TrackingConfig, storage: Storage) -> Check:
    """Check that MLflow takes what is sent; a run would go well without it, and send it later."""
    from pipelines.mlflow_sink import tracking_uri, without_secrets

    if not config.mlflow:
        return Check("MLflow", "ok", "not wanted (tracking.mlflow is false)")
    uri = tracking_uri(config, storage)
    shown = without_secrets(uri)
    later = "until then metrics wait in the run's folder"
    if uri.startswith(("http://", "https://")):
        problem = _why_unhealthy(shown)
        advice = f"start the server, or mend MLFLOW_TRACKING_URI or tracking.uri; {later}"
    elif uri.startswith("sqlite:///"):
        problem = _why_unwritable(Path(uri.removeprefix("sqlite:///")).absolute())
        advice = f"mend its folder, or set MLFLOW_TRACKING_URI or tracking.uri; {later}"
    else:
        return Check("MLflow", "ok", f"{shown} (not looked at)")
    return Check("MLflow", "warning", f"{shown}: {problem}", advice) if problem else Check("MLflow", "ok", shown)


def _why_unhealthy(uri: str) -> str | None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_MLFLOW_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"answers with HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return f"no answer ({getattr(error, 'reason', error)})"
    return None


def _why_unwritable(file: Path) -> str | None:
    """Say what stands in the way of writing a file."""
    if not file.exists():
        file = _existing(file)
        if not file.is_dir():
            return f"{file} is no folder"
    return None if os.access(file, os.W_OK) else f"{file} cannot be written"


@checking("data")
def check_data(config: StageConfig) -> Check:
    """Check that a stage's data is there and can be read, without reading it all."""
    from perceiver.data.locate import locate_data

    return Check("data", "ok", locate_data(config.data))


@checking("input model")
def check_input(config: TextClassifierStageConfig) -> Check:
    """Check that the model that a stage starts from is there."""
    from perceiver.saving import CONFIG

    storage = Storage.from_uri(config.init_from or "", "init_from")
    if not (storage / CONFIG).is_readable():
        raise UserError(f"init_from {storage} holds no model ({CONFIG} can't be read): name a model/ folder of a run")
    return Check("input model", "ok", str(storage))
