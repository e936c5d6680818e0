"""Let a Ray cluster run a pipeline: `python -m pipelines submit VERB [options]`.

What can be known to go wrong is found before anything is sent. The job's id is the run's name, so that the same command
goes on with a run that stopped, as it does without a cluster.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from perceiver.errors import UserError
from pipelines.checks import Check, failure_of
from pipelines.cli import Command
from pipelines.cluster import check_workers
from pipelines.cluster_checks import judge_workers
from pipelines.config import ScalingConfig, stages_of
from pipelines.jobs import Dashboard, Jobs, LogPrinter, exit_status, is_ended
from pipelines.origin import GIT_COMMIT, git_commit
from pipelines.package import Package, make_package
from pipelines.ray_token import find_token
from pipelines.storage import Storage, check_run_name
from pipelines.submit_options import check_options, no_database
from pipelines.tool_cli import SubmitCommand

_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_JOB_ID = re.compile(r"[A-Za-z0-9_.-]+")
_DETACHED_STATUS = 130
_CREDENTIALS = re.compile(
    r"credential|access.?denied|forbidden|unauthorized|anonymous|not authenticated|\b40[13]\b", re.I
)


def submit(command: SubmitCommand) -> int:
    """Submit a run, and follow it unless that isn't wanted.

    Returns:
        The exit status of the job's command; 130 if it was stopped, or is followed no more.

    Raises:
        UserError: If the user made a mistake; nothing was sent then.
    """
    name = command.command.run.run_name
    package = _check_here(command)
    dashboard = Dashboard(_address(command.config.address), find_token())
    _heed(_check_there(dashboard, command.command))
    jobs = Jobs(dashboard)
    before = _make_room(jobs, name, dashboard.address)
    entrypoint = shlex.join(["python", "-m", "pipelines", command.command.verb, *command.options])
    commit = git_commit(package.folder)
    tags = {"run_name": name, "verb": command.command.verb} | ({"git_commit": commit} if commit else {})
    jobs.submit(name, entrypoint, _runtime_env(package, commit), tags)
    _print_places(dashboard.address, command.command, package)
    if not command.config.follow:
        _print_commands(dashboard.address, name)
        return 0
    return _follow(jobs, name, LogPrinter(before), lambda: _print_commands(dashboard.address, name))


def _check_here(command: SubmitCommand) -> Package:
    """Find what is wrong with the options, and with what would travel."""
    name = command.command.run.run_name
    check_run_name(name)
    if not _JOB_ID.fullmatch(name):
        raise UserError(f"run_name {name!r} can't be a job's id: use letters, digits, '-', '_' and '.'")
    check_workers(stages_of(command.command.verb, command.command.config, ""), command.command.run.scaling)
    package = make_package(command.config)
    check_options(command, package)
    return package


def _address(named: str | None) -> str:
    address = named or os.environ.get("RAY_API_SERVER_ADDRESS") or _DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    if not re.match(r"https?://[^/]", address):
        raise UserError(f"address is {address}, but has to be the dashboard's: http://HOST:8265")
    return address


def _check_there(dashboard: Dashboard, command: Command) -> Iterator[Check]:
    """Yield what is found about the cluster."""
    import ray

    version = dashboard.version()
    if version != ray.__version__:
        found = f"the cluster at {dashboard.address} runs Ray {version}, but this is Ray {ray.__version__}"
        yield Check("Ray version", "failure", found, "install the version of the other")
    try:
        yield from _check_room(dashboard.resources(), command.run.scaling)
    except (UserError, KeyError, TypeError, ValueError):
        yield Check("workers", "warning", "the cluster does not tell what it has", "look at its dashboard")
    yield _check_storage(command.run.storage_path)
    if no_database(command.run):
        found = "MLflow has only the job's temporary folder there, unless the cluster's nodes set MLFLOW_TRACKING_URI"
        yield Check("MLflow", "warning", found, "give --tracking.uri, or --tracking.mlflow false")


def _check_room(total: dict[str, float], scaling: ScalingConfig) -> Iterator[Check]:
    use_gpu = total.get("GPU", 0) > 0 if scaling.use_gpu is None else scaling.use_gpu
    if scaling.use_gpu is None and not use_gpu and scaling.max_workers:
        advice = "set scaling.use_gpu to true if GPU nodes start when they are asked for, to false if there are none"
        yield Check("GPUs", "warning", "the cluster has no GPU now, so that the run would train on CPUs", advice)
    each = {"CPU": float(scaling.cpus_per_worker or 1)} | ({"GPU": 1.0} if use_gpu else {})
    yield judge_workers(scaling, each, total)


def _check_storage(uri: str) -> Check:
    """Write to an object store, to which this machine may lack the keys that the cluster has."""
    try:
        storage = Storage.from_uri(uri)
        if storage.is_local:  # the cluster's own folder, which need not be here
            return Check("storage", "ok", str(storage))
        storage.check_writable()
    except UserError as error:
        if not _CREDENTIALS.search(str(error)):
            return failure_of("storage", error)
        return Check(
            "storage", "warning", f"{str(error).rpartition(': ')[0]} from here", "the cluster has to be able to"
        )
    return Check("storage", "ok", str(storage))


def _heed(checks: Iterator[Check]) -> None:
    """Print the warnings; a failure is an error, and what was to be looked at after it isn't."""
    for check in checks:
        line = f"{check.found}: {check.advice}" if check.advice else check.found
        if check.status == "failure":
            raise UserError(line)
        if check.status == "warning":
            _warn(line)


def _make_room(jobs: Jobs, name: str, address: str) -> str:
    """Remove the job that had this name and ended, and return its log."""
    job = jobs.find(name)
    if job is None:
        return ""
    if not is_ended(job):
        raise UserError(
            f"a job {name} is {job.status.lower()} already: follow it with `{_log_command(address, name)}`, stop it "
            f"with `{_stop_command(address, name)}`, or choose another run_name"
        )
    return jobs.forget(job)


def _follow(jobs: Jobs, name: str, log: LogPrinter, say_how: Callable[[], None]) -> int:
    try:
        job = jobs.follow(name, log, _warn)
    except KeyboardInterrupt:
        print("\nthe job goes on without this command", file=sys.stderr)
        say_how()
        return _DETACHED_STATUS
    if job is None:
        print(f"error: job {name} is out of reach or gone", file=sys.stderr)
        say_how()
        return 1
    if job.status == "FAILED" and job.driver_exit_code is None:
        print(f"error: Ray could not run the job: {' '.join((job.message or '').split())[-500:]}", file=sys.stderr)
    elif job.status == "STOPPED":
        print("the job was stopped; the same command goes on", file=sys.stderr)
    return exit_status(job)


def _runtime_env(package: Package, commit: str) -> Mapping[str, Any]:
    """Return the runtime environment of the job, which knows what commit its code is of."""
    variables = {**(package.runtime_env.get("env_vars") or {}), **({GIT_COMMIT: commit} if commit else {})}
    return {**package.runtime_env, "env_vars": variables}


def _print_places(address: str, command: Command, package: Package) -> None:
    name = command.run.run_name
    storage = Storage.from_uri(command.run.storage_path)
    print(f"Job        {name} ({len(package.files)} files, {package.size / 1e3:.0f} kB)")
    print(f"Dashboard  {address}/#/jobs/{name}")
    print(f"Results    {storage / name}", flush=True)


def _print_commands(address: str, name: str) -> None:
    print(f"Follow     {_log_command(address, name)}")
    print(f"Stop       {_stop_command(address, name)}", flush=True)


def _log_command(address: str, name: str) -> str:
    return f"ray job logs --follow --address {shlex.quote(address)} {name}"


def _stop_command(address: str, name: str) -> str:
    return f"ray job stop --address {shlex.quote(address)} {name}"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
