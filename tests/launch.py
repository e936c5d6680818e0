"""What is wrong with the files that launch clusters: open to others, dear when idle, or not what is locked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parent.parent
AWS, PREMISES, STACK, JOB, IMAGE = (
    "cluster.yaml",
    "cluster/on-premises.yaml",
    "cluster/aws.yaml",
    "cluster/rayjob.yaml",
    "cluster/Dockerfile",
)
_SECRETS = (
    r"AKIA[0-9A-Z]{16}",
    r"\b[0-9a-fA-F]{32,}\b",
    r"-----BEGIN",
    r"://[^/\s:@]+:[^/\s@]+@",
    r"(?i)(?:password|secret|access_?key|token)[\"']? *[:=] *[\"']?(?![~$\"'{\s])\S",
)
_GPU_INSTANCE = re.compile(r"(g|p)\d")
_TOKEN = "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token"


def read_files() -> dict[str, str]:
    """Return the text of each file that launches a cluster."""
    return {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in (AWS, PREMISES, STACK, JOB, IMAGE)}


def locked(name: str = "requirements.lock") -> dict[str, str]:
    """Return the version of each package of a lock file, and that of Python as `python`."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    python = re.search(r"pip-compile with Python (\S+)", text)
    assert python is not None
    return {"python": python[1]} | dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def find_problems(files: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the files, as `file: problem`."""
    checks = {AWS: _check_aws, PREMISES: _check_premises, STACK: _check_stack, JOB: _check_job, IMAGE: _check_image}
    found = []
    for name, check in checks.items():
        problems = [*_check_text(files[name]), *check(files[name])]
        found += [f"{name}: {problem}" for problem in problems]
    return found


def start_commands(config: Mapping[str, Any], kind: str) -> list[str]:
    """Return the start commands of the head or the workers."""
    return list(config[f"{kind}_start_ray_commands"])


def _check_text(text: str) -> Iterator[str]:
    if "0.0.0.0" in text or "::/0" in text:
        yield "an address that is open to all"
    for pattern in _SECRETS:
        if re.search(pattern, text):
            yield f"looks like a secret ({pattern})"


def _check_aws(text: str) -> Iterator[str]:
    config = yaml.safe_load(text)
    yield from _check_ray_up(config)
    if "security_group" in config["provider"]:
        yield "Ray adds SSH from everywhere to a provider.security_group"
    if config["provider"].get("cache_stopped_nodes", True):
        yield "stopped nodes are kept"
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        yield "idle workers stay"
    for name, node in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        if not node["node_config"].get("SecurityGroupIds"):
            yield f"{name}: no security group of our own"
        if "IamInstanceProfile" not in node["node_config"]:
            yield f"{name}: no role"
        if bool(_GPU_INSTANCE.match(node["node_config"]["InstanceType"])) is is_head:
            yield f"{name}: wrong machine"
        if is_head and node["resources"].get("CPU") != 0:
            yield "the head takes work"
        if not is_head and node["min_workers"] != 0:
            yield f"{name}: runs without work"


def _check_premises(text: str) -> Iterator[str]:
    config = yaml.safe_load(text)
    yield from _check_ray_up(config)
    words = " ".join(start_commands(config, "head")).split()
    if not {"--num-cpus=0", "--num-gpus=0"} <= set(words):
        yield "the head takes work"
    if "RAY_enable_autoscaler_v2=0;" not in words:
        yield "an autoscaler that can't do machines of one's own"


def _check_ray_up(config: dict[str, Any]) -> Iterator[str]:
    try:
        validate_config(prepare_config(config))
    except (jsonschema.ValidationError, ValueError) as error:
        yield f"Ray refuses it: {error}"
    yield from _check_install(config)
    yield from _check_start(config)


def _check_install(config: Mapping[str, Any]) -> Iterator[str]:
    mounts = {remote: local for remote, local in config["file_mounts"].items() if not local.startswith("~")}
    for remote, local in mounts.items():
        if not (REPOSITORY / local).exists() or remote != f"~/perceiver-ray/{local}":
            yield f"mounts {local} as {remote}"
    if not {"requirements.lock", "pyproject.toml", *packages()} <= set(mounts.values()):
        yield "part of the project is not mounted"
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        yield "no token is mounted"
    commands = config["setup_commands"]
    if "chmod 600 ~/.ray/auth_token" not in commands:
        yield "others may read the token"
    if not any(f"python{locked()['python']} -m venv ~/venv" in command for command in commands):
        yield "another Python than the locked one"
    yield from _check_pip([command for command in commands if "pip install" in command], "~/perceiver-ray/")


def _check_pip(commands: list[str], folder: str) -> Iterator[str]:
    if not any({"--require-hashes", f"{folder}requirements.lock"} <= set(command.split()) for command in commands):
        yield "the lock file is not installed"
    for command in commands:
        if "--require-hashes" not in command and "--no-deps" not in command:
            yield f"installs what is not locked: {command}"


def _check_start(config: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("head", "worker"):
        starts = [command for command in start_commands(config, kind) if "ray start" in command]
        words = " ".join(starts).replace(";", " ").split()
        if len(starts) != 1 or not {"RAY_AUTH_MODE=token", _TOKEN} <= set(words):
            yield f"{kind}: no token"
        if "unset OMP_NUM_THREADS" not in starts[0]:
            yield f"{kind}: one core"
    words = " ".join(start_commands(config, "head")).replace(";", " ").split()
    if "--dashboard-host=127.0.0.1" not in words:
        yield "the dashboard is open"
    if "mlflow server --host 127.0.0.1 --port 5000 --workers 1" not in " ".join(words):
        yield "MLflow is open, or has many processes"
    if "MLFLOW_TRACKING_URI=http://127.0.0.1:5000" not in words:
        yield "drivers don't know MLflow"
    yield from _check_stop_time(" ".join(words))


def _check_stop_time(text: str) -> Iterator[str]:
    seconds = re.search(r"RAY_JOB_STOP_WAIT_TIME_S\D+(\d+)", text)
    if seconds is None or int(seconds[1]) < 60:
        yield "no time for a last checkpoint"


def _check_stack(text: str) -> Iterator[str]:
    resources = yaml.safe_load(text)["Resources"]
    parameters = yaml.safe_load(text)["Parameters"]
    rules = resources["Group"]["Properties"]["SecurityGroupIngress"]
    if rules != [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": {"Ref": "SshFrom"}}]:
        yield "more is open than SSH from one place"
    pattern = parameters["SshFrom"]["AllowedPattern"]
    if any(re.fullmatch(pattern, wide) for wide in ("0/0", "203.0.113.7/0", "10.0.0.0/8", "0.1.2.3/32")):
        yield "SSH from everywhere is possible"
    if not re.fullmatch(pattern, "203.0.113.7/32"):
        yield "SSH from one address is impossible"
    for resource in resources.values():
        if resource["Type"] == "AWS::EC2::SecurityGroupIngress" and (
            resource["Properties"].get("SourceSecurityGroupId") != {"Fn::GetAtt": ["Group", "GroupId"]}
        ):
            yield "a rule that lets others in"


def _check_job(text: str) -> Iterator[str]:
    documents = {document["kind"]: document for document in yaml.safe_load_all(text)}
    if documents.keys() != {"RayJob", "NetworkPolicy"}:
        yield f"holds {sorted(documents)}"
        return
    job, policy = documents["RayJob"]["spec"], documents["NetworkPolicy"]["spec"]
    cluster = job["rayClusterSpec"]
    if cluster["rayVersion"] != locked()["ray"]:
        yield "another Ray than the locked one"
    if cluster.get("authOptions") != {"mode": "token"}:
        yield "no token"
    if not job.get("shutdownAfterJobFinishes") or not cluster.get("enableInTreeAutoscaling"):
        yield "pods stay"
    head = cluster["headGroupSpec"]
    if head["rayStartParams"] != {"num-cpus": "0", "num-gpus": "0"}:
        yield "the head takes work"
    if head.get("serviceType") != "ClusterIP":
        yield "the head is open"
    yield from _check_pods(head, cluster["workerGroupSpecs"], policy["podSelector"]["matchLabels"])
    for rule in policy["ingress"]:
        if not rule.get("from") or not all(peer.get("podSelector", {}).get("matchLabels") for peer in rule["from"]):
            yield "a rule that lets others in"
    yield from _check_stop_time(str(head["template"]["spec"]["containers"][0]["env"]))


def _check_pods(head: dict[str, Any], workers: list[dict[str, Any]], labels: dict[str, str]) -> Iterator[str]:
    for group in (head, *workers):
        name, pod = group.get("groupName", "head"), group["template"]["spec"]
        if not labels.items() <= group["template"]["metadata"]["labels"].items():
            yield f"{name}: the policy does not apply"
        if not pod["containers"][0]["image"].endswith(f"/perceiver-ray:{project()['version']}"):
            yield f"{name}: another image"
        if bool(pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")) is (group is head):
            yield f"{name}: wrong machine"
        if [volume["emptyDir"]["medium"] for volume in pod["volumes"]] != ["Memory"]:
            yield f"{name}: little shared memory"
        if group is not head and (group["minReplicas"], group["replicas"]) != (0, 0):
            yield f"{name}: runs without work"


def _check_image(text: str) -> Iterator[str]:
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    if [base.partition("-")[0] for base in bases] != [f"python:{locked()['python']}"]:
        yield "another Python than the locked one"
    copied = set(re.findall(r"^COPY ([a-z]+) \1$", text, re.MULTILINE))
    if copied != packages():
        yield f"copies {sorted(copied)}"
    yield from _check_pip(re.findall(r"^RUN (.*pip install.*)$", text, re.MULTILINE), "")
    if not re.search(r"^USER (?!root)", text, re.MULTILINE):
        yield "runs as root"


def project() -> dict[str, Any]:
    """Return the project's table of pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def packages() -> set[str]:
    """Return the packages of the project."""
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    return {pattern.rstrip("*") for pattern in table["find"]["include"]}
