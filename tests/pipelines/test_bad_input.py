"""A user's mistake is one line that says what is wrong and how to mend it: nothing starts, nothing is written over."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from perceiver.data.tokenizer import train_tokenizer
from pipelines import train as train_module
from pipelines.__main__ import main
from tests.pipelines.mistakes import CASES, FILES, IMAGES, OPTIONS, ROWS, TEXTS


def command(verb: str, root: Path, **options: Any) -> list[str]:
    settings = OPTIONS | (IMAGES if verb == "image-classifier" else TEXTS) | options
    return [verb, *(f"--{name}={value}".replace("{root}", str(root)) for name, value in settings.items())]


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Return time and checksum of every file; a file that is written again with the same content differs too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and with the finished runs `texts` and `images`."""
    root = tmp_path_factory.mktemp("root")
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    columns = dict(zip(("text", "label"), map(list, zip(*ROWS, strict=True)), strict=True))
    for path in (root / "good.parquet", root / "hub" / "train.parquet", root / "hub_no_rows" / "train.parquet"):
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path)
    pq.write_table(pa.table(columns).slice(0, 0), root / "hub_no_rows" / "test.parquet")
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = root / "class_folders" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    path.write_bytes(b"damaged")
    train_tokenizer(["other words"] * 3, 50).save(str(root / "tokenizer.json"))
    one_epoch = {f"{stage}.trainer.max_epochs": 1 for stage in ("mlm", "frozen", "finetune")}
    main(command("sentiment", root, **one_epoch, baselines="false", **{"scaling.num_workers": 0}))
    main(command("image-classifier", root, **{"trainer.max_epochs": 1, "scaling.num_workers": 0}))
    damaged = shutil.copytree(root / "runs/texts/mlm/model", root / "damaged") / "model.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return root


@pytest.fixture(autouse=True)
def _no_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a start of Ray or of a training fail the test; by then the runs that `root` needs are there."""

    def start(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something started in spite of the mistake")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(train_module, "train", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


Refused = Callable[[list[str]], str]


@pytest.fixture
def refused(root: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused with one line and status 2, and return what the line says."""

    def run(argv: list[str]) -> str:
        before = tree(root / "runs")
        names = sorted(os.listdir(root))
        with pytest.raises(SystemExit) as exit_info:
            main(argv)
        out, err = capsys.readouterr()
        assert (exit_info.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.index("\n") == len(err) - 1, "more than one line"
        assert tree(root / "runs") == before
        assert sorted(os.listdir(root)) == names
        return err.removeprefix("error: ").replace(str(root), "{root}").rstrip("\n")

    return run


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_one_line(name: str, root: Path, refused: Refused) -> None:
    verb, options, expected = CASES[name]
    assert expected in refused(command(verb, root, **options))


@pytest.mark.parametrize("source", ["good.csv", "good.parquet", "hub"])
def test_missing_column(source: str, root: Path, refused: Refused) -> None:
    where = "split train of {root}/hub" if source == "hub" else f"{{root}}/{source}"
    for field, verb in (("text_column", "mlm"), ("label_column", "sentiment")):
        options = {"data.path": f"{{root}}/{source}", f"data.{field}": "stars"}
        expected = f"{where} has no column stars: set text_column or label_column to one of text, label"
        assert refused(command(verb, root, **options)) == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_absent_gpu(num_workers: int, root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = refused(command("mlm", root, **{"scaling.use_gpu": "true", "scaling.num_workers": num_workers}))
    assert line.startswith("scaling.use_gpu is true, but this machine has no GPU that PyTorch can use: leave it out")


def test_address_where_nobody_listens(root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        line = refused(command("mlm", root))
    assert line.startswith(f"RAY_ADDRESS is {address}, but no Ray cluster answers there (")
    assert line.endswith("): unset or mend it")


def test_address_of_something_else(root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **kwargs: (_ for _ in ()).throw(ConnectionError("not a cluster\nat all")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        line = refused(command("mlm", root))
    assert (
        line == f"RAY_ADDRESS is {address}, but no Ray cluster answers there (not a cluster at all): unset or mend it"
    )


def test_own_result_as_input(root: Path, refused: Refused, tmp_path: Path) -> None:
    runs = shutil.copytree(root / "runs", tmp_path / "runs")
    (runs / "texts" / "finetune").rename(runs / "texts" / "text-classifier")
    before = tree(runs)
    model = runs / "texts" / "text-classifier" / "model"
    line = refused(command("text-classifier", root, storage_path=runs, init_from=model))
    assert line == f"init_from {model} is this stage's own result: choose another run_name"
    assert tree(runs) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "finished"}'])
def test_damaged_state_of_a_later_stage(content: str, root: Path, refused: Refused, tmp_path: Path) -> None:
    runs = shutil.copytree(root / "runs", tmp_path / "runs")
    state = runs / "texts" / "finetune" / "stage.json"
    state.write_text(content)
    before = tree(runs)
    line = refused(command("sentiment", root, storage_path=runs))
    assert line == f"{state} is damaged: restore it, or delete {state.parent} to run the stage from the start"
    assert tree(runs) == before


def start(argv: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("some/images", "some/images is neither a local path nor in the cache, and the hub cannot be reached ("),
        ("{root}/hub_no_rows", "{root}/hub_no_rows has a split without rows: "),
    ],
)
def test_libraries_say_nothing_of_their_own(path: str, expected: str, root: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    process = start(command("image-classifier", root, **{"data.path": path}), **nowhere)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {expected}".replace("{root}", str(root)))


def test_ctrl_c_during_preparation(root: Path, tmp_path: Path) -> None:
    """One of the texts is a pipe, so that preparation waits until it is interrupted."""
    for name in ("neg", "pos"):
        (tmp_path / "aclImdb" / "train" / name).mkdir(parents=True)
    pipe = tmp_path / "aclImdb" / "train" / "neg" / "0.txt"
    os.mkfifo(pipe)
    before = tree(root / "runs")
    process = start(command("sentiment", root, **{"data.path": tmp_path / "aclImdb"}))
    writer = open_for_writing(pipe, process)
    process.send_signal(signal.SIGINT)
    os.close(writer)  # a signal that comes just before the read begins would wait for it to end
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "stopped; the same command goes on from the newest checkpoint\n"
    assert tree(root / "runs") == before


def open_for_writing(pipe: Path, reader: subprocess.Popen[str], deadline: float = 120.0) -> int:
    """Open a pipe as soon as it is read from."""
    end = time.monotonic() + deadline
    while time.monotonic() < end and reader.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.02)
    raise AssertionError(f"{pipe} was not read within {deadline} s")
