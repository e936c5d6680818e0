"""The jobs of a Ray cluster, by its dashboard: what it is like, which jobs there are, and what they say."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from perceiver.errors import UserError
from pipelines.ray_token import NO_TOKEN, WRONG_TOKEN, Token

_SECONDS = 10.0
_LOST_SECONDS = 300.0  # that a cluster may be out of reach while its log is followed
_SETTLE_SECONDS = 3.0  # that Ray may take to be done with a job that ended
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_STOPPED_STATUS = 130

# What Ray adds to the output of a job's command.
_NOISE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\s+INFO \S+:\d+ -- |\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ I |"
    r"Running entrypoint for job |\*\*\* SIGTERM received |PC: @ |    @ +0x|\[[^]]+ E \d+ \d+\] logging\.cc:"
)
_PREFIX = re.compile(r"(\x1b\[\d+m)?\((\w[\w.<>]* )?pid=\d+(, ip=[\d.:a-f]+)?\)(\x1b\[0m)? ")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes the token nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirection."""


class Dashboard:
    """The REST API of a cluster.

    Args:
        address: Its URL.
        token: What it may ask for.
    """

    def __init__(self, address: str, token: Token | None) -> None:
        self.address = address.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token.value}"} if token else {}
        self._token = token
        self._opener = urllib.request.build_opener(_NoRedirect)

    def version(self) -> str:
        """Return the version of Ray.

        Raises:
            UserError: If the cluster doesn't answer, or asks for another token.
        """
        answer = self._get("/api/version")
        try:
            return str(answer["ray_version"])
        except (KeyError, TypeError):
            raise UserError(f"{self.address} is no dashboard of a Ray cluster: correct the address") from None

    def resources(self) -> dict[str, float]:
        """Return the resources of all nodes together."""
        total: dict[str, float] = {}
        for node in self._get("/api/v0/nodes?limit=10000")["data"]["result"]["result"]:
            if node["state"] == "ALIVE":
                for name, value in node["resources_total"].items():
                    total[name] = total.get(name, 0.0) + value
        return total

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.address + path, headers=self.headers)
        try:
            with self._opener.open(request, timeout=_SECONDS) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            raise UserError(self._refusal(error.code)) from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(
                f"{self.address} does not answer ({reason}): open a way to the cluster (`ray dashboard cluster.yaml`), "
                "or name another --address"
            ) from None
        try:
            return json.loads(content)
        except ValueError:
            return None  # a page for a browser

    def _refusal(self, status: int) -> str:
        if status == 401:
            return f"{self.address} asks for a token, and there is none: {NO_TOKEN}"
        if status == 403:
            source = self._token.source if self._token else "this request"
            return f"{self.address} refuses the token of {source}: {WRONG_TOKEN}"
        return f"{self.address} answers with HTTP status {status}, which no Ray cluster does here: correct the address"


class Jobs:
    """The jobs of a cluster.

    Args:
        dashboard: Its REST API, which answered already.
    """

    def __init__(self, dashboard: Dashboard) -> None:
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard", "ray._private.runtime_env"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        os.environ["RAY_API_SERVER_ADDRESS"] = dashboard.address  # the client prefers it to what it is told
        self._client = JobSubmissionClient(dashboard.address, headers=dict(dashboard.headers))

    def find(self, job_id: str) -> Any | None:
        """Return what is known of a job; None if there is none of that id."""
        return next((job for job in self._client.list_jobs() if job.submission_id == job_id), None)

    def forget(self, job: Any) -> str:
        """Remove a job that ended, so that another may have its id, and return its log, to which Ray will append."""
        ended = (job.end_time or 0) / 1000
        time.sleep(min(_SETTLE_SECONDS, max(0.0, ended + _SETTLE_SECONDS - time.time())))
        try:
            log = self._client.get_job_logs(job.submission_id)
        except RuntimeError:  # the node that had it is gone
            log = ""
        self._client.delete_job(job.submission_id)
        return log

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Upload what travels with a job, and start it.

        Raises:
            UserError: If the cluster refuses it.
        """
        try:
            self._client.submit_job(
                submission_id=job_id, entrypoint=entrypoint, runtime_env=dict(runtime_env), metadata=dict(tags)
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(f"the cluster refuses the job ({reason}): mend that, or look at its dashboard") from None

    def follow(self, job_id: str, log: LogPrinter, warn: Callable[[str], None]) -> Any | None:
        """Print a job's log until it ends, across lost connections.

        Returns:
            What is known of the job; None if it is out of reach for long, or gone.
        """
        lost_since = None
        while True:
            try:
                asyncio.run(self._tail(job_id, log))
                job = self.find(job_id)
                if job is None or is_ended(job):
                    log.close()
                    return job
                lost_since = None
            except Exception as error:  # whatever Ray, its HTTP libraries and a half-open connection raise
                if lost_since is None:
                    lost_since = time.monotonic()
                    warn(f"the cluster does not answer ({' '.join(str(error).split())[:200]}); trying again")
                if time.monotonic() - lost_since > _LOST_SECONDS:
                    return None
            time.sleep(1.0)

    async def _tail(self, job_id: str, log: LogPrinter) -> None:
        log.restart()
        async for chunk in self._client.tail_job_logs(job_id):
            log.feed(chunk)


class LogPrinter:
    """Prints the lines of a log, each once, without what Ray adds.

    Args:
        before: What an earlier job of the same id left in the log, which is not printed.
        stream: Where to print.
    """

    def __init__(self, before: str = "", stream: TextIO | None = None) -> None:
        self._before = before
        self._stream = stream or sys.stdout
        self._printed = len(before)
        self._received = 0
        self._rest = ""

    def restart(self) -> None:
        """Expect the log from its beginning, for a connection was made anew."""
        self._received = 0

    def feed(self, chunk: str) -> None:
        """Take the next part of the log."""
        if self._received < len(self._before):
            known = self._before[self._received : self._received + len(chunk)]
            if not chunk.startswith(known):  # another log, such as that of another node, though it began alike
                chunk = self._before[: self._received] + chunk
                self._before, self._printed, self._received = "", 0, 0
        new = chunk[max(0, self._printed - self._received) :]
        self._received += len(chunk)
        self._printed = max(self._printed, self._received)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._print(line)

    def close(self) -> None:
        """Print what has no end of line."""
        if self._rest:
            self._print(self._rest)
            self._rest = ""

    def _print(self, line: str) -> None:
        if not _NOISE.match(line):
            print(_PREFIX.sub("", line, count=1), file=self._stream, flush=True)


def is_ended(job: Any) -> bool:
    """Return whether a job came to its end, whatever that was."""
    return job.status in _ENDED


def exit_status(job: Any) -> int:
    """Return the exit status of a job's command as a shell would; 130 if somebody stopped it, 1 if none is known."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return _STOPPED_STATUS
    code = job.driver_exit_code
    return 128 - code if code is not None and code < 0 else code or 1
