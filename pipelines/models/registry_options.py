"""Options of the verbs that deal with MLflow's model registry."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import check_no_password, check_registry_name


@dataclass(frozen=True)
class RegisterOptions:
    """Give a model to MLflow's model registry, where it becomes the candidate; twice makes no second version."""

    model: str
    """A run's folder, whose last stage counts; a stage's folder; a model/ folder; or runs:/RUN_ID/model."""
    name: str
    """Name in the registry."""
    tracking_uri: str | None = None
    """MLflow tracking URI (null: MLFLOW_TRACKING_URI, else the run's own, else mlflow.db in ./runs)."""

    def __post_init__(self) -> None:
        check_registry_name("name", self.name)
        check_no_password(self.tracking_uri)


@dataclass(frozen=True)
class PromoteOptions:
    """Make the candidate the champion, if it did better in the test. The first candidate needs no comparison."""

    name: str
    """Name in the registry."""
    metric: str = "test_accuracy"
    """Metric that is compared; of losses, perplexities and errors the smaller is the better."""
    force: bool = False
    """Whether the candidate becomes the champion whatever the metric says."""
    tracking_uri: str | None = None
    """MLflow tracking URI (null: MLFLOW_TRACKING_URI, else mlflow.db in ./runs)."""

    def __post_init__(self) -> None:
        check_registry_name("name", self.name)
        check_no_password(self.tracking_uri)
