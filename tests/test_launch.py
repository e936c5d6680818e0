"""Clusters can be launched: Ray accepts the files, which open nothing to the world and install what is locked."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import ray
import yaml

from pipelines.cli import Command, parse
from tests.launch import AWS, IMAGE, JOB, PREMISES, REPOSITORY, STACK, find_problems, locked, read_files, start_commands

MINUTE = 60.0


def test_nothing_is_wrong() -> None:
    assert find_problems(read_files()) == []


@pytest.mark.parametrize(
    ("name", "good", "bad", "problem"),
    [
        (AWS, "max_workers: 2\n", "max_workers: many\n", "Ray refuses it"),
        (AWS, "cluster_name:", "cluster_nam:", "Ray refuses it"),
        (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "an address that is open to all"),
        (AWS, "--dashboard-host=127.0.0.1", "", "the dashboard is open"),
        (AWS, "--host 127.0.0.1", "--host 10.0.0.1", "MLflow is open"),
        (AWS, "--workers 1\n", "\n", "MLflow is open, or has many processes"),
        (AWS, "MLFLOW_TRACKING_URI=", "MLFLOW_URI=", "drivers don't know MLflow"),
        (AWS, "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token\n", "A=1\n", "head: no token"),
        (AWS, "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token;", "RAY_AUTH_TOKEN_PATH=/tmp/token;", "worker: no token"),
        (AWS, "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "no token is mounted"),
        (AWS, "- chmod 600", "- chmod 644", "others may read the token"),
        (AWS, "RAY_JOB_STOP_WAIT_TIME_S=120", "RAY_JOB_STOP_WAIT_TIME_S=3", "no time for a last checkpoint"),
        (AWS, "unset OMP_NUM_THREADS;", "", "head: one core"),
        (AWS, "resources: {CPU: 0}", "resources: {}", "the head takes work"),
        (AWS, "InstanceType: m7i.xlarge", "InstanceType: g6.xlarge", "head: wrong machine"),
        (AWS, "InstanceType: g6.2xlarge", "InstanceType: m7i.xlarge", "gpu: wrong machine"),
        (AWS, "min_workers: 0", "min_workers: 1", "gpu: runs without work"),
        (AWS, "idle_timeout_minutes: 5", "idle_timeout_minutes: 500", "idle workers stay"),
        (AWS, "cache_stopped_nodes: false", "cache_stopped_nodes: true", "stopped nodes are kept"),
        (AWS, "  region:", "  security_group: {GroupName: a}\n  region:", "Ray adds SSH from everywhere"),
        (AWS, "SecurityGroupIds: *group", "SecurityGroupIds: []", "gpu: no security group of our own"),
        (AWS, "IamInstanceProfile: {Name: perceiver-ray-worker}", "KeyName: a", "gpu: no role"),
        (AWS, "python3.11 -m venv", "python3.12 -m venv", "another Python than the locked one"),
        (AWS, "--require-hashes\n", "\n", "the lock file is not installed"),
        (AWS, "--require-hashes\n", "\n", "installs what is not locked"),
        (AWS, "-q --no-deps", "-q", "installs what is not locked"),
        (AWS, "  ~/perceiver-ray/tune: tune\n", "", "part of the project is not mounted"),
        (AWS, "lock: requirements.lock\n", "lock: constraints.lock\n", "mounts constraints.lock as"),
        (PREMISES, "head_ip: YOUR-HEAD", "head_ip: 7", "Ray refuses it"),
        (PREMISES, "--num-cpus=0", "", "the head takes work"),
        (PREMISES, "RAY_enable_autoscaler_v2=0", "A=1", "an autoscaler that can't do machines of one's own"),
        (PREMISES, "--dashboard-host=127.0.0.1", "", "the dashboard is open"),
        (PREMISES, "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token;", "A=1;", "worker: no token"),
        (PREMISES, "--require-hashes\n", "\n", "the lock file is not installed"),
        (STACK, "FromPort: 22", "FromPort: 0", "more is open than SSH from one place"),
        (STACK, "CidrIp: {Ref: SshFrom}", "CidrIp: 203.0.113.0/1", "more is open than SSH from one place"),
        (STACK, "/(2[4-9]|3[0-2])", r"/\d+", "SSH from everywhere is possible"),
        (STACK, r"(\.\d{1,3}){3}", r"(\.\d{1,2}){3}", "SSH from one address is impossible"),
        (STACK, "SourceSecurityGroupId:", "SourcePrefixListId:", "a rule that lets others in"),
        (JOB, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "another Ray than the locked one"),
        (JOB, "mode: token", "mode: disabled", "no token"),
        (JOB, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "pods stay"),
        (JOB, 'num-cpus: "0"', 'num-cpus: "2"', "the head takes work"),
        (JOB, "serviceType: ClusterIP", "serviceType: LoadBalancer", "the head is open"),
        (JOB, "minReplicas: 0", "minReplicas: 1", "gpu: runs without work"),
        (JOB, "nvidia.com/gpu: 1}\n                volume", "cpu: 1}\n                volume", "gpu: wrong machine"),
        (JOB, "perceiver-ray:0.1.0", "perceiver-ray:latest", "head: another image"),
        (JOB, "{medium: Memory, sizeLimit: 8Gi}", '{medium: ""}', "gpu: little shared memory"),
        (JOB, "metadata: {labels: {app: perceiver-ray}}", "metadata: {labels: {}}", "head: the policy does not apply"),
        (JOB, "app.kubernetes.io/name: kuberay-operator", "", "a rule that lets others in"),
        (JOB, 'value: "120"', 'value: "3"', "no time for a last checkpoint"),
        (JOB, "kind: NetworkPolicy", "kind: Service", "holds ['RayJob', 'Service']"),
        (IMAGE, "FROM python:3.11", "FROM python:3.12", "another Python than the locked one"),
        (IMAGE, "COPY tune tune\n", "", "copies ['perceiver', 'pipelines']"),
        (IMAGE, "--require-hashes -r requirements.lock", ".", "the lock file is not installed"),
        (IMAGE, "USER ray", "USER root", "runs as root"),
    ],
)
def test_damage_is_found(name: str, good: str, bad: str, problem: str) -> None:
    files = read_files()
    assert good in files[name]
    problems = find_problems(files | {name: files[name].replace(good, bad, 1)})
    assert any(found.startswith(f"{name}: {problem}") for found in problems), problems


@pytest.mark.parametrize(
    "secret",
    [
        "AKIA" + "A1B2" * 4,
        "0123456789abcdef" * 4,
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "postgresql://mlflow:hunter2@db/mlflow",
        "password: hunter2",
        "RAY_AUTH_TOKEN=hunter2",
        "aws_secret_access_key: hunter2",
    ],
)
def test_secrets_are_found(secret: str) -> None:
    files = read_files()
    problems = find_problems(files | {PREMISES: f"{files[PREMISES]}# {secret}\n"})
    assert problems
    assert all(problem.startswith(f"{PREMISES}: looks like a secret") for problem in problems)


def test_locks_agree() -> None:
    ours, more = locked(), locked("cluster/requirements.lock")
    assert ours["ray"] == ray.__version__
    assert {"boto3", "psycopg2-binary"} <= more.keys()
    assert more.items() >= {(name, ours[name]) for name in ours.keys() & more.keys()}


@pytest.mark.parametrize("name", [AWS, PREMISES])
def test_a_second_mlflow_is_not_started(name: str, tmp_path: Path) -> None:
    """A stand-in for MLflow notes its process and goes on for as long as a server would."""
    server = tmp_path / "bin" / "mlflow"
    server.parent.mkdir()
    server.write_text('#!/bin/sh\necho "$$ $@" >> "$HOME/started"\nexec sleep 60\n')
    server.chmod(0o755)
    (command,) = (
        text for text in start_commands(yaml.safe_load(read_files()[name]), "head") if "mlflow server" in text
    )
    environment = {"HOME": str(tmp_path), "PATH": f"{server.parent}:{os.environ['PATH']}"}
    started, log = tmp_path / "started", tmp_path / "mlflow" / "log.txt"

    def run() -> None:
        subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=MINUTE)

    run()
    wait_for(started)
    pid, *arguments = started.read_text().split()
    try:
        assert arguments[:3] == ["server", "--host", "127.0.0.1"]
        assert f"sqlite:///{tmp_path}/mlflow/mlflow.db" in arguments
        run()
        run()
        assert subprocess.run(["flock", "--nonblock", tmp_path / "mlflow" / "lock", "true"], check=False).returncode
        assert len(started.read_text().splitlines()) == 1
        assert log.read_text() == ""
    finally:
        os.kill(int(pid), signal.SIGKILL)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + MINUTE
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.05)


@pytest.mark.parametrize("name", [AWS, JOB])
def test_the_command_of_a_job_parses(name: str) -> None:
    """As written, but for the folder of the image: workers that are yet to come have to be described in full."""
    text = re.sub(r"\\?\n#? *", " ", read_files()[name]).replace("/app/", f"{REPOSITORY}/")
    found = re.search(r"python -m pipelines (.*?--scaling.cpus_per_worker \d+)", text)
    assert found is not None
    command = parse(shlex.split(found[1]))
    assert isinstance(command, Command)
    assert command.run.storage_path == "s3://YOUR-BUCKET/runs"
    assert (command.run.scaling.num_workers, command.run.scaling.use_gpu) == (2, True)
    assert command.run.scaling.cpus_per_worker is not None
