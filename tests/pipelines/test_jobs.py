"""A job's log is printed once, whatever happens to the connection, and its status is that of its command."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.jobs import Jobs, LogPrinter, exit_status

NOISE = """\
2026-11-25 04:45:58,449\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job x: python -m pipelines mlm
[2026-11-25 04:45:59,449 I 12 13] core_worker.cc:1: started
"""
LINES = "mlm  starting\nmlm  epoch 1/1  val_loss 2.0\n\nResults  /runs/x\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_are_whole_and_without_what_ray_adds(size: int) -> None:
    stream = io.StringIO()
    printer = LogPrinter(stream=stream)
    text = f"{NOISE}{LINES}(RayTrainWorker pid=12, ip=10.0.0.1) said (pid=3) this\nlast"
    for start in range(0, len(text), size):
        printer.feed(text[start : start + size])
    printer.close()
    assert stream.getvalue() == f"{LINES}said (pid=3) this\nlast\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_of_an_earlier_job_are_passed_over_if_the_log_holds_them(size: int) -> None:
    for held, expected in ((NOISE + "before\n", "now\n"), ("", "now\n")):
        stream = io.StringIO()
        printer = LogPrinter(NOISE + "before\n", stream)
        text = held + NOISE.replace("04:45", "04:59") + "now\n"
        for start in range(0, len(text), size):
            printer.feed(text[start : start + size])
        assert stream.getvalue() == expected if held or size > 1 else expected in stream.getvalue()


class Client:
    """Stands in for Ray's: each connection gives the first so many characters of the log, and then breaks."""

    def __init__(self, log: str, breaks: list[int], status: str = "SUCCEEDED") -> None:
        self.log, self.breaks, self.deleted = log, breaks, ""
        self.job: Any = SimpleNamespace(submission_id="x", status=status, end_time=None, driver_exit_code=0)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else None
        for line in self.log[:end].splitlines(keepends=True):
            yield line
        if end is not None:
            raise RuntimeError("closed unexpectedly")

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id="y"), self.job] if self.job else []

    def get_job_logs(self, job_id: str) -> str:
        return self.log

    def delete_job(self, job_id: str) -> None:
        self.deleted = job_id


def jobs_of(client: Client) -> Jobs:
    jobs = object.__new__(Jobs)
    jobs._client = client
    return jobs


def test_log_across_lost_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    client, stream, warnings = Client(NOISE + LINES, [0, len(NOISE) + 20, 40, len(NOISE) + 60]), io.StringIO(), []
    job = jobs_of(client).follow("x", LogPrinter(stream=stream), warnings.append)
    assert job is client.job
    assert stream.getvalue() == LINES
    assert warnings == ["the cluster does not answer (closed unexpectedly); trying again"]


def test_cluster_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("pipelines.jobs._LOST_SECONDS", 0.0)
    client = Client(LINES, [3] * 100)
    assert jobs_of(client).follow("x", LogPrinter(stream=io.StringIO()), lambda line: None) is None


def test_job_that_is_gone() -> None:
    client = Client(LINES, [])
    client.job = None
    assert jobs_of(client).follow("x", LogPrinter(stream=io.StringIO()), lambda line: None) is None


def test_job_that_ended_makes_room_when_ray_is_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    client = Client(LINES, [])
    for age in (1.0, 1000.0):
        client.job.end_time = (time.time() - age) * 1000
        assert jobs_of(client).forget(client.job) == LINES
    assert client.deleted == "x"
    assert waits == [pytest.approx(2.0, abs=0.5), 0.0]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_exit_status(status: str, code: int | None, expected: int) -> None:
    assert exit_status(SimpleNamespace(status=status, driver_exit_code=code)) == expected
