"""What would go wrong with a job is found before anything is sent: one line, exit status 2."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import submit as submit_module
from pipelines.__main__ import main
from pipelines.origin import GIT_COMMIT, git_commit, origin_tags
from tests.pipelines.fake_cluster import CPU_NODE, HERE, NODE, THERE, Cluster
from tests.pipelines.mistakes import IMAGES, OPTIONS, TEXTS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    threading.Thread(target=cluster.serve_forever, args=(0.01,), daemon=True).start()
    yield cluster
    cluster.shutdown()
    cluster.server_close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Path:
    """The current folder: a project, with files that travel and files that don't."""
    project = tmp_path / "project"
    for name in ("perceiver/__init__.py", "pipelines/__init__.py"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    shutil.copy(REPOSITORY / "runtime-env.yaml", project)
    (project / "mine.yaml").write_text("trainer: {max_epochs: 1}")
    (project / "with_own.yaml").write_text("follow: false")
    (project / "texts.csv").write_text("text,label\na,0\n")
    (project / "perceiver" / "texts.csv").write_text("text,label\na,0\n")
    (project / "sub").mkdir()
    shutil.copy(project / "mine.yaml", project / "sub")
    shutil.copy(project / "mine.yaml", tmp_path)
    monkeypatch.chdir(project)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{cluster.server_port}")
    return project


def command(verb: str, root: Path, **options: Any) -> list[str]:
    settings = OPTIONS | (IMAGES if verb == "image-classifier" else TEXTS) | options
    return ["submit", verb, *(f"--{name}={value}".replace("{root}", str(root)) for name, value in settings.items())]


Refused = Callable[[list[str]], str]


@pytest.fixture
def refused(
    project: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Run a command that must be refused with one line and status 2, and return what the line says."""
    monkeypatch.setattr(submit_module, "Jobs", lambda dashboard: pytest.fail("went on in spite of the mistake"))

    def run(argv: list[str]) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main(argv)
        out, err = capsys.readouterr()
        assert (exit_info.value.code, out) == (2, "")
        assert all(method == "GET" for method, _, _ in cluster.asked)
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").replace(str(project.parent), "{root}").rstrip("\n")

    return run


@pytest.mark.parametrize("name", HERE)
def test_mistake_that_is_found_here(name: str, project: Path, cluster: Cluster, refused: Refused) -> None:
    verb, options, expected = HERE[name]
    line = refused(command(verb, project.parent, **options))
    assert line.startswith(expected)
    assert "hidden" not in line
    assert cluster.asked == []


@pytest.mark.parametrize("name", THERE)
def test_cluster_that_will_not_do(name: str, project: Path, cluster: Cluster, refused: Refused) -> None:
    settings, expected = THERE[name]
    vars(cluster).update(settings)
    line = refused(command("mlm", project.parent))
    assert f"http://127.0.0.1:{cluster.server_port} {expected}" in line
    assert [path for _, path, _ in cluster.asked] == ["/api/version"]


def test_wrong_token(project: Path, cluster: Cluster, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "token").write_text("hidden\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    cluster.status = 403
    line = refused(command("mlm", project.parent))
    assert line.endswith(" refuses the token of token: name a file with the cluster's own token in RAY_AUTH_TOKEN_PATH")
    assert cluster.asked == [("GET", "/api/version", "Bearer hidden")]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "none")
    assert refused(command("mlm", project.parent)).startswith("RAY_AUTH_TOKEN_PATH none cannot be read (No such file")
    assert len(cluster.asked) == 1


def test_where_nobody_listens(project: Path, refused: Refused) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        line = refused(command("mlm", project.parent, address=address))
    assert line.startswith(f"http://{address} does not answer (")
    assert line.endswith("open a way to the cluster (`ray dashboard cluster.yaml`), or name another --address")


def test_storage_that_cannot_be_opened(project: Path, refused: Refused) -> None:
    line = refused(command("mlm", project.parent, storage_path="nope://x"))
    assert line == "storage_path 'nope://x' cannot be opened (Protocol not known: nope): give another path or URI"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_job_that_runs_already(
    status: str, project: Path, cluster: Cluster, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SimpleNamespace(status=status)
    monkeypatch.setattr(submit_module, "Jobs", lambda dashboard: SimpleNamespace(find=lambda name: job))
    line = refused(command("mlm", project.parent))
    address = f"--address http://127.0.0.1:{cluster.server_port} texts"
    assert line == (
        f"a job texts is {status.lower()} already: follow it with `ray job logs --follow {address}`, "
        f"stop it with `ray job stop {address}`, or choose another run_name"
    )


class RecordingJobs:
    """Stands in for the cluster's jobs: one of the name ended before, the next one ends as told."""

    def __init__(self, ended: Any = None, follow: Callable[[], Any] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._ended, self._follow = ended, follow

    def find(self, name: str) -> Any:
        return self._ended

    def forget(self, job: Any) -> str:
        self.calls.append(("forget", job))
        return "before"

    def submit(self, *arguments: Any) -> None:
        self.calls.append(("submit", *arguments))

    def follow(self, *arguments: Any) -> Any:
        assert self._follow is not None, "followed although that is not wanted"
        return self._follow()


def run(jobs: RecordingJobs, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(submit_module, "Jobs", lambda dashboard: jobs)
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_what_is_sent(
    project: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    ended = SimpleNamespace(status="FAILED")
    jobs = RecordingJobs(ended)
    options = {"config": "mine.yaml", "samples": "[\"a [MASK] 'film'\"]", "data.path": "perceiver/texts.csv"}
    argv = command("mlm", project.parent, **options, follow="false")
    assert run(jobs, argv, monkeypatch) == 0
    forgotten, (_, name, entrypoint, runtime_env, tags) = jobs.calls
    assert forgotten == ("forget", ended)
    assert name == "texts"
    assert entrypoint.startswith("python -m pipelines mlm --encoder.num_latents=2 ")
    assert "'--samples=[\"a [MASK] '\"'\"'film'\"'\"'\"]'" in entrypoint
    assert "--config=mine.yaml" in entrypoint
    assert "--follow" not in entrypoint
    assert runtime_env["env_vars"].keys() == {"GOMP_SPINCOUNT", "RAY_JOB_STOP_WAIT_TIME_S", "TOKENIZERS_PARALLELISM"}
    assert runtime_env["working_dir"] == str(project)
    assert tags == {"run_name": "texts", "verb": "mlm"}
    assert "hidden" not in str(jobs.calls)
    out, err = capsys.readouterr()
    address = f"http://127.0.0.1:{cluster.server_port}"
    assert f"Dashboard  {address}/#/jobs/texts\n" in out
    assert f"Follow     ray job logs --follow --address {address} texts\n" in out
    assert err == ""


@pytest.mark.parametrize(
    ("job", "status", "said"),
    [
        (SimpleNamespace(status="SUCCEEDED", driver_exit_code=0), 0, ""),
        (SimpleNamespace(status="FAILED", driver_exit_code=2), 2, ""),
        (
            SimpleNamespace(status="STOPPED", driver_exit_code=None),
            130,
            "the job was stopped; the same command goes on",
        ),
        (
            SimpleNamespace(status="FAILED", driver_exit_code=None, message="no\nroom"),
            1,
            "could not run the job: no room",
        ),
        (None, 1, "error: job texts is out of reach or gone"),
    ],
)
def test_status_is_that_of_the_job(
    job: Any, status: int, said: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(RecordingJobs(follow=lambda: job), command("mlm", project.parent), monkeypatch) == status
    err = capsys.readouterr().err
    assert (said in err) if said else not err


def test_ctrl_c_leaves_the_job_running(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run(RecordingJobs(follow=interrupt), command("mlm", project.parent), monkeypatch) == 130
    out, err = capsys.readouterr()
    assert err.strip() == "the job goes on without this command"
    assert "ray job stop --address" in out


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        (
            [],
            {"scaling.use_gpu": "true"},
            "1, each with 1 CPU and 1 GPU, but the cluster has 0 CPU and 0 GPU: ",
        ),
        ([NODE], {"scaling.num_workers": 2}, "2, each with 1 CPU and 1 GPU, but the cluster has 1 GPU: training waits"),
        ([NODE], {"scaling.num_workers": 2, "scaling.use_gpu": "false"}, ""),
        (
            [CPU_NODE],
            {},
            "the cluster has no GPU now, so that the run would train on CPUs: set ",
        ),
        ([CPU_NODE], {"scaling.use_gpu": "false"}, ""),
        ([{}], {}, "the cluster does not tell what it has: look at its dashboard"),
        (
            [NODE],
            {"storage_path": "memory://x", "tracking.mlflow": "true"},
            "MLflow has only the job's temporary ",
        ),
    ],
)
def test_what_is_only_a_warning(
    nodes: list[Any],
    options: dict[str, Any],
    expected: str,
    project: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.nodes = nodes
    jobs = RecordingJobs()
    assert run(jobs, command("mlm", project.parent, **options, follow="false"), monkeypatch) == 0
    assert len(jobs.calls) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {expected}") if expected else not err


def test_a_job_knows_the_commit_of_its_code(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    jobs = RecordingJobs()
    assert run(jobs, command("mlm", project.parent, follow="false"), monkeypatch) == 0
    ((_, _, _, runtime_env, tags),) = jobs.calls
    commit = git_commit()
    assert len(commit) == 40
    assert tags["git_commit"] == runtime_env["env_vars"][GIT_COMMIT] == commit
    monkeypatch.chdir(project.parent)  # no checkout, as on the cluster
    monkeypatch.setenv(GIT_COMMIT, commit)
    assert origin_tags()["git_commit"] == commit


def test_missing_keys_of_a_bucket_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise submit_module.UserError("storage_path 's3://b' cannot be written (ACCESS_DENIED during PUT): mend it")

    monkeypatch.setattr(submit_module.Storage, "check_writable", refuse)
    check = submit_module._check_storage("memory://b")
    assert (check.status, check.found) == (
        "warning",
        "storage_path 's3://b' cannot be written (ACCESS_DENIED during PUT) from here",
    )
