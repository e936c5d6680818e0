"""`python -m pipelines batch-predict`: files of any size are classified by Ray actors, and a killed command goes on.

The input is divided into numbered shards, always the same ones. An actor turns each into one file that appears whole;
files that are there are not made again. _batch.json says of what input and model they are.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perceiver.config import MaskedLanguageModelConfig
from perceiver.data.fingerprint import fingerprint_of
from perceiver.errors import UserError, one_line
from perceiver.files import folder_digest, write_atomic
from perceiver.saving import load_model
from pipelines.cluster import connected, own_resources, worker_resources
from pipelines.config import ScalingConfig
from pipelines.lock import HOLDER, LOCK, run_lock
from pipelines.models.batch_actor import Job, ShardPredictor, schema_of
from pipelines.models.inputs import Wanted, find_files
from pipelines.models.outputs import check_id_column, counted
from pipelines.models.predict import device_of, kind_of
from pipelines.models.predict_options import BatchPredictConfig
from pipelines.models.shards import Shard, divide, fingerprint_of_files, is_written
from pipelines.models.where import model_folder
from pipelines.storage import Storage, is_leftover

MANIFEST = "_batch.json"  # readers of Parquet folders pass names by that begin like this
_LOG_SECONDS = 10.0
_MODEL = ".model"  # the actors' copy, while they work


@dataclass(frozen=True)
class _Model:
    """A model on its way to the actors.

    Attributes:
        wanted: What it reads of the input.
        class_names: Its classes.
        files: Content of the files of its folder.
        fingerprint: Identity of these.
    """

    wanted: Wanted
    class_names: tuple[str, ...]
    files: dict[str, bytes]
    fingerprint: str


def batch_predict(config: BatchPredictConfig) -> int:
    """Classify files, and go on where an earlier command with the same options stopped.

    Returns:
        The exit status: 130 after Ctrl-C or SIGTERM.

    Raises:
        UserError: If the model, the input or the output can't be used, or the cluster doesn't answer.
    """
    try:
        _batch_predict(config)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    return 0


def _batch_predict(config: BatchPredictConfig) -> None:
    _check_resources(config)
    output = Path(config.output).expanduser().absolute()
    model = _read_model(config)
    _check_apart(output, config.input)
    files = [file.absolute() for file in find_files(config.input, model.wanted.kind)]
    shards = divide(files, model.wanted, config.rows_per_shard)
    rows = sum(shard.rows for shard in shards)
    facts = {
        "input": fingerprint_of_files(files),
        "model": model.fingerprint,
        "settings": {"resize": config.resize, "rows_per_shard": config.rows_per_shard, **asdict(model.wanted)},
    }
    identity = fingerprint_of(json.dumps(facts, sort_keys=True))
    with _claimed(output, {**facts, "classes": model.class_names, "rows": rows, "shards": len(shards)}):
        missing = [shard for shard in shards if not is_written(output, shard, identity)]
        if len(missing) < len(shards):
            print(f"{len(shards) - len(missing)} of {len(shards)} shards are there already", file=sys.stderr)
        if missing:
            _run(config, model, missing, output, identity)
    print(f"{output}: predictions for {counted(rows, 'row')} in {counted(len(shards), 'file')}")


def _check_apart(output: Path, inputs: Sequence[str]) -> None:
    """Raise a UserError where predictions would be taken for input, or input lies among predictions."""
    place = output.resolve()
    for name in inputs:
        path = Path(name).expanduser().resolve()
        if path.is_dir() and path in (place, *place.parents):
            raise UserError(f"output {output} lies in the input {name}: name a folder elsewhere")
        if place in path.parents:
            raise UserError(f"output {output} holds the input {name}: name another folder")


def _check_resources(config: BatchPredictConfig) -> None:
    """Raise a UserError if this machine, where no other cluster is named, can't hold the actors."""
    own = own_resources()
    if own is None:
        return
    if config.num_actors > own["CPU"]:
        raise UserError(
            f"num_actors is {config.num_actors}, but this machine has {own['CPU']:g} cores: ask for fewer, or name a "
            "cluster in RAY_ADDRESS"
        )
    device_of(config.device)
    if config.device != "cpu" and 0 < own["GPU"] < config.num_actors:
        raise UserError(
            f"num_actors is {config.num_actors}, but this machine has {own['GPU']:g} GPUs: ask for fewer, or set "
            "--device cpu"
        )


def _read_model(config: BatchPredictConfig) -> _Model:
    with model_folder(config.model, config.tracking_uri) as folder:
        model = load_model(folder).config  # reads it all, so that a damaged one is found before anything starts
        if isinstance(model, MaskedLanguageModelConfig):
            raise UserError(f"model {config.model} fills masks, but a classifier is needed: name another run or stage")
        kind = kind_of(model)
        column = config.text_column if kind == "text" else config.image_column
        fingerprint = folder_digest(folder, verify=False)
        contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        check_id_column(config.id_column, schema_of(model.class_names).names)
        return _Model(Wanted(kind, column, config.id_column), model.class_names, contents, fingerprint)


@contextmanager
def _claimed(output: Path, manifest: dict[str, Any]) -> Iterator[None]:
    """Hold the output folder alone, with a manifest that says what it is of.

    Raises:
        UserError: If the folder is of another input, model or settings, holds other things, can't be written, or is
            held by another command.
    """
    manifest = json.loads(json.dumps(manifest))
    with ExitStack() as stack:
        with _writing(output):
            _is_new(output, manifest)  # before anything is written there
            stack.enter_context(run_lock(Storage.from_uri(output, "output"), "output"))
            if _is_new(output, manifest):
                write_atomic(output / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        yield


def _is_new(output: Path, manifest: dict[str, Any]) -> bool:
    """Return whether nothing is there yet, or raise a UserError unless what is there has the same manifest."""
    path = output / MANIFEST
    if path.exists():
        _compare(output, _read(path), manifest)
        return False
    if output.is_dir() and any(not _is_ours(child.name) for child in output.iterdir()):
        raise UserError(f"output {output} is not empty: name another folder")
    return True


def _is_ours(name: str) -> bool:
    """Tell whether a file is what a command leaves that was killed before it wrote the manifest."""
    return name in (LOCK, HOLDER) or is_leftover(name)


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged: name another output, or delete this one")
    return manifest


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turn an error of the file system into one line about the output."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"output {output} cannot be written ({reason}): mend it or name another folder") from None


def _compare(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in ("input", "model", "settings"):
        if before.get(name) != now[name]:
            what = {"input": "another input", "model": "another model", "settings": "other settings"}[name]
            raise UserError(f"output {output} has predictions of {what}: name another folder, or delete it")


def _run(config: BatchPredictConfig, model: _Model, shards: Sequence[Shard], output: Path, identity: str) -> None:
    rows, errors = 0, 0
    with _writing(output):
        Storage.from_uri(output, "output").delete_leftovers()
        for name, content in model.files.items():
            write_atomic(output / _MODEL / name, content)
    try:
        with connected(), _progress(sum(shard.rows for shard in shards)) as advance:
            begun = time.monotonic()
            for done in _results(config, model, shards, output, identity):
                if done["failure"]:
                    raise UserError(str(done["failure"]))
                rows, errors = rows + done["rows"], errors + done["errors"]
                advance(done["rows"])
            seconds = time.monotonic() - begun
    finally:
        shutil.rmtree(output / _MODEL, ignore_errors=True)
    print(f"{counted(rows, 'row')} in {seconds:.1f} s, {rows / seconds:.0f} a second", file=sys.stderr)
    if errors:
        print(f"note: {counted(errors, 'row')} could not be read: the column error says why", file=sys.stderr)


def _results(
    config: BatchPredictConfig, model: _Model, shards: Sequence[Shard], output: Path, identity: str
) -> Iterator[dict[str, Any]]:
    """Let the actors of the connected cluster work, and yield what they say of each shard as it is done."""
    import ray.data

    use_gpu = False if config.device == "cpu" else True if config.device == "cuda" else None
    resources, has_gpu = worker_resources(ScalingConfig(num_workers=config.num_actors, use_gpu=use_gpu))
    job = Job(
        model=str(output / _MODEL),
        wanted=model.wanted,
        class_names=tuple(model.class_names),
        output=str(output),
        identity=identity,
        resize=config.resize,
        batch_size=config.batch_size,
        cpus=int(resources["CPU"]),
        has_gpu=has_gpu,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"shard": shard.to_json()} for shard in shards]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(
        ShardPredictor,
        fn_constructor_args=(job,),
        concurrency=config.num_actors,
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
    )
    yield from results.iter_rows()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of rows on a terminal, or a line now and then in a log, and yield what moves it."""
    if not sys.stderr.isatty():
        yield _LogProgress(total).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("rows", total=total)
        yield lambda rows: progress.advance(task, rows)


class _LogProgress:
    """Progress in a log."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._next = 0.0

    def advance(self, rows: int) -> None:
        """Take note of some more rows, and say how many are done if the last line is some time ago."""
        self._done += rows
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            print(f"{self._done:,} of {counted(self._total, 'row')}", file=sys.stderr, flush=True)
