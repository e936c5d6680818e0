"""What travels to a cluster: the code and its configurations, and nothing that is big or secret."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from ray.runtime_env import RuntimeEnv

from perceiver.errors import UserError
from pipelines.package import Package, make_package
from pipelines.tool_cli import SubmitConfig

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "runtime-env.yaml"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a project with a configuration, with data, and with much that is to stay."""
    for name in ("perceiver/__init__.py", "pipelines/__init__.py", "pipelines/configs/a.yaml", "tune/spaces/b.yaml",
                 "my.yaml", "data/reviews.csv", "pipelines/__pycache__/x.pyc", "perceiver/.hidden", ".git/config",
                 ".venv/bin/python", "runs/mlm/model/model.safetensors", "reviews.csv", "mlflow.db"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    shutil.copy(FILE, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def package_of_the_repository() -> Package:
    return make_package(SubmitConfig(working_dir=str(REPOSITORY), runtime_env=str(FILE)))


def test_the_code_travels_and_little_else() -> None:
    package = package_of_the_repository()
    assert package.size < 1024**2
    for folder in ("perceiver", "pipelines", "tune"):
        files = [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".yaml", ".j2")]
        assert {path.relative_to(REPOSITORY).as_posix() for path in files} <= package.files
    assert {name.split("/")[0] for name in package.files if not name.endswith(".yaml")} <= {
        "perceiver", "pipelines", "tune"}  # fmt: skip
    assert all(name.endswith((".py", ".yaml", ".j2")) for name in package.files)


def test_runtime_environment_is_one_that_ray_takes() -> None:
    content = yaml.safe_load(FILE.read_text())
    RuntimeEnv(**content)
    assert package_of_the_repository().runtime_env == {**content, "working_dir": str(REPOSITORY)}
    assert int(content["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_what_stays(project: Path) -> None:
    assert make_package(SubmitConfig()).files == {
        "perceiver/__init__.py", "pipelines/__init__.py", "pipelines/configs/a.yaml", "tune/spaces/b.yaml", "my.yaml",
        "runtime-env.yaml"}  # fmt: skip


def test_without_the_file_all_but_the_hidden_travels(project: Path) -> None:
    package = make_package(SubmitConfig(runtime_env=None))
    assert {"data/reviews.csv", "mlflow.db"} < package.files
    assert not any(name.startswith((".git/", ".venv/")) for name in package.files)
    (project / "runtime-env.yaml").unlink()
    assert make_package(SubmitConfig()).files == package.files - {"runtime-env.yaml"}


def test_files_that_travel_and_files_that_stay(project: Path) -> None:
    package = make_package(SubmitConfig())
    package.check_holds("--config", "my.yaml")
    package.check_holds("data.path", "pipelines/configs")
    for path in ("reviews.csv", "data", "pipelines"):  # the last holds what is compiled
        with pytest.raises(UserError, match=f"data.path is {path}, but .* does not travel to the cluster: add it to"):
            package.check_holds("data.path", path)
    with pytest.raises(UserError, match="lies outside .*: move it there, or to a shared folder"):
        package.check_holds("data.path", "../x.csv")


def test_relative_paths_of_another_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_package(SubmitConfig())
    monkeypatch.chdir(project / "data")
    with pytest.raises(UserError, match=r"--config is \.\./my.yaml, but the job starts in .*: start the command there"):
        package.check_holds("--config", "../my.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("env_vars: {MLFLOW_TRACKING_PASSWORD: x}", "holds MLFLOW_TRACKING_PASSWORD, which everybody who may look at"),
        ("env_vars: {RAY_AUTH_TOKEN: x}", "holds RAY_AUTH_TOKEN, which everybody"),
        ("env_vars: {AWS_SECRET_ACCESS_KEY: x}", "holds AWS_SECRET_ACCESS_KEY, which everybody"),
        ("env_vars: [", "cannot be read (while parsing"),
        ("- a", "holds no options, such as excludes:"),
        ("excludes: ['/perceiver']", "keeps perceiver/ from travelling: mend its excludes"),
    ],
)
def test_runtime_environment_that_will_not_do(content: str, message: str, project: Path) -> None:
    (project / "other.yaml").write_text(content)
    with pytest.raises(UserError) as info:
        make_package(SubmitConfig(runtime_env="other.yaml"))
    assert str(info.value).startswith("runtime_env other.yaml ")
    assert message in str(info.value)


def test_folders_that_will_not_do(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="working_dir data holds no perceiver/: name the folder of the project"):
        make_package(SubmitConfig(working_dir="data"))
    with pytest.raises(UserError, match="runtime_env none.yaml cannot be read"):
        make_package(SubmitConfig(runtime_env="none.yaml"))
    monkeypatch.setattr("ray._private.runtime_env.packaging.GCS_STORAGE_MAX_SIZE", 10)
    with pytest.raises(UserError, match="makes a package of 0 MB, more than 0: exclude data and results"):
        make_package(SubmitConfig())
