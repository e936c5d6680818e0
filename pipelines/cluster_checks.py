"""What a run needs of the Ray cluster that RAY_ADDRESS names: an answer, our versions, our storage."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from perceiver.errors import UserError
from pipelines.checks import PACKAGES, Check, checking, failure_of, installed_versions, traceless
from pipelines.cluster import check_cluster, connected, own_resources, worker_resources
from pipelines.config import ScalingConfig
from pipelines.ray_token import NO_TOKEN, WRONG_TOKEN, find_token
from pipelines.storage import Storage

_ANSWER_SECONDS = 5.0
_NODE_SECONDS = 60.0  # a worker process has to start, and Ray may have to be read from a slow disk
_MUST_MATCH = ("python", "ray")

Report = Mapping[str, Any]
"""A node's name and resources, its versions, and whether it shares the storage path; or why it is silent."""


def named_address() -> str | None:
    """Return the address of the cluster to join; None where a run would start its own, or none."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@checking("Ray cluster")
def check_answers(scaling: ScalingConfig) -> Check:
    """Check that the named cluster answers and takes our token; Ray itself would try for 20 seconds."""
    address = named_address()
    if address is None:
        resources = own_resources() or {}
        shown = ", ".join(f"{value:g} {name}" for name, value in resources.items())
        return Check("Ray cluster", "ok", f"none (RAY_ADDRESS is not set); one of this machine's own has {shown}")
    check_cluster(ScalingConfig(max(1, scaling.max_workers)))
    place = re.fullmatch(r"\[?([^/\[\]]+)\]?:(\d{1,5})", address)
    if place is None or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # auto, a client's, or encrypted
        return Check("Ray cluster", "ok", address)
    version = _ask_version(address)
    return Check("Ray cluster", "ok", f"{address}, Ray {version}")


def _ask_version(address: str) -> str:
    """Ask a cluster once for its version, which it tells only to those with its token."""
    import grpc
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    token = find_token()
    sent = [("authorization", f"Bearer {token.value}")] if token else []
    try:
        with grpc.insecure_channel(address) as channel:
            answer = NodeInfoGcsServiceStub(channel).CheckAlive(
                CheckAliveRequest(), timeout=_ANSWER_SECONDS, metadata=sent
            )
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            if token is None:
                raise UserError(f"{address} asks for a token: {NO_TOKEN}") from None
            raise UserError(f"{address} refuses the token in {token.source}: {WRONG_TOKEN}") from None
        reason = f"no Ray cluster answers at {address} ({error.code().name.lower()})"
        raise UserError(f"{reason}: unset or mend RAY_ADDRESS") from None
    return str(answer.ray_version)


def check_joined(storage: Storage | None, scaling: ScalingConfig) -> list[Check]:
    """Join the named cluster, and check its nodes.

    Args:
        storage: The storage path; None if this process can't write there.
        scaling: The workers that are wanted.
    """
    try:
        with connected():
            reports = _ask_nodes(storage)
            checks = [_check_nodes(reports), _check_node_versions(reports)]
            if storage is not None:
                checks.append(_check_shared(storage, reports))
            return [*checks, _check_workers(scaling)]
    except Exception as error:
        return [failure_of("Ray nodes", error)]


def _ask_nodes(storage: Storage | None) -> list[Report]:
    """Let each node tell its versions, look for a file that is written here, and write one beside it."""
    if storage is None:
        return _ask(None, "")
    mark = storage / f".doctor-{uuid.uuid4().hex}"
    with traceless(storage):
        mark.write_bytes(b"?")
        try:
            return _ask(mark.filesystem, mark.path)
        finally:
            mark.delete()


def _ask(filesystem: Any, mark: str) -> list[Report]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(_make_probe())
    answers = {}
    for number, node in enumerate(node for node in ray.nodes() if node["Alive"]):
        pinned = probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        has = {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
        answers[pinned.remote(filesystem, mark, number)] = {"node": node["NodeManagerHostname"], **has}
    ray.wait(list(answers), num_returns=len(answers), timeout=_NODE_SECONDS)
    reports: list[Report] = []
    for answer, report in answers.items():
        try:
            reports.append({**report, **ray.get(answer, timeout=0)})
        except ray.exceptions.RayError as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            reports.append({**report, "silent": text[-1][:200]})
    return reports


def _make_probe() -> Any:
    """Return what a node runs: a function inside a function travels whole to where this package may not be."""
    packages = PACKAGES

    def probe(filesystem: Any, mark: str, number: int) -> dict[str, Any]:
        import platform
        from importlib import metadata

        versions = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        if filesystem is None:
            return {"versions": versions}
        try:
            sees = filesystem.get_file_info(mark).is_file
            if sees:  # elsewhere nothing is to be left
                with filesystem.open_output_stream(f"{mark}-{number}") as stream:
                    stream.write(b"?")
                filesystem.delete_file(f"{mark}-{number}")
        except Exception as error:
            return {"versions": versions, "trouble": str(error)[:200] or type(error).__name__}
        return {"versions": versions, "sees": sees}

    return probe


@checking("Ray nodes")
def _check_nodes(reports: Sequence[Report]) -> Check:
    total = ", ".join(f"{sum(report[name] for report in reports):g} {name}" for name in ("CPU", "GPU"))
    found = f"{len(reports)}, with {total}"
    if silent := [report for report in reports if "silent" in report]:
        first = silent[0]
        found += f"; {len(silent)} ran no task: {first['node']} ({first['silent']})"
        return Check("Ray nodes", "failure", found, "look at it with `ray status`, and remove or restart it")
    return Check("Ray nodes", "ok", found)


@checking("versions on nodes")
def _check_node_versions(reports: Sequence[Report]) -> Check:
    ours = {name: _public(version) for name, version in installed_versions().items()}
    differences, must = [], False
    for report in (report for report in reports if "silent" not in report):
        theirs = {name: _public(version) for name, version in report["versions"].items()}
        for name, version in ours.items():
            if theirs.get(name) != version:
                differences.append(f"{report['node']} has {name} {theirs.get(name) or '(none)'}, not {version}")
                must = must or name in _MUST_MATCH
    if differences:
        found = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
        return Check("versions on nodes", "failure" if must else "warning", found, "install the same requirements.lock")
    return Check("versions on nodes", "ok", "the same as here")


def _public(version: str) -> str:
    """Return a version without what tells builds for different hardware apart."""
    return version.partition("+")[0]


@checking("storage on nodes")
def _check_shared(storage: Storage, reports: Sequence[Report]) -> Check:
    name = "storage on nodes"
    answers = [report for report in reports if "silent" not in report]
    for report in answers:
        if "trouble" in report:
            found = f"{report['node']} cannot write to {storage} ({report['trouble']})"
            return Check(name, "failure", found, "mend permissions or credentials there, or choose another")
        if not report["sees"]:
            found = f"{report['node']} does not see what is written to {storage} here: each has a folder of its own"
            return Check(name, "failure", found, "set storage_path to a bucket, or to a folder that all nodes mount")
    return Check(name, "ok", f"{storage}: shared, and writable from {len(answers)} of {len(reports)}")


@checking("workers")
def _check_workers(scaling: ScalingConfig) -> Check:
    import ray

    if scaling.max_workers == 0:
        return Check("workers", "ok", "none; trains in the process of the command")
    resources, _ = worker_resources(scaling)
    return judge_workers(scaling, resources, ray.cluster_resources())


def judge_workers(scaling: ScalingConfig, each: Mapping[str, float], total: Mapping[str, float]) -> Check:
    """Say whether a cluster that may yet grow has room for the workers.

    Args:
        scaling: How many.
        each: What each of them needs.
        total: What the cluster has now.
    """
    shown = " and ".join(f"{value:g} {name}" for name, value in each.items())
    found = f"{scaling.workers_in_words()}, each with {shown}"
    lacking = [name for name, value in each.items() if scaling.min_workers * value > total.get(name, 0)]
    if lacking:
        have = " and ".join(f"{total.get(name, 0):g} {name}" for name in lacking)
        return Check("workers", "warning", f"{found}, but the cluster has {have}", "training waits until it grows")
    return Check("workers", "ok", found)
