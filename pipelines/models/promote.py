"""`python -m pipelines promote`: the candidate becomes the champion if it is better."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from perceiver.errors import UserError
from pipelines.mlflow_client import without_secrets
from pipelines.models.registry import CANDIDATE, CHAMPION
from pipelines.models.registry_options import PromoteOptions
from pipelines.models.where import connect, mlflow_uri
from pipelines.sink import root_cause

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SMALLER_IS_BETTER = {"loss", "perplexity", "error", "ece", "brier", "nll"}


class NotBetterError(Exception):
    """The candidate stays what it is; its text is one line that says why."""


def promote(options: PromoteOptions) -> int:
    """Move the champion's alias, or say why not, and return the exit status.

    Raises:
        UserError: If there is no candidate, or nobody answers.
    """
    from mlflow.exceptions import MlflowException

    uri = mlflow_uri(options.tracking_uri)
    client = connect(uri)
    versions = _aliases(client, options.name, without_secrets(uri))
    try:
        reason = _compare(client, options, versions[CANDIDATE], versions.get(CHAMPION))
    except NotBetterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        client.set_registered_model_alias(options.name, CHAMPION, versions[CANDIDATE])
    except MlflowException as error:
        raise UserError(f"{options.name} can't be promoted ({root_cause(error)}): mend that and try again") from None
    print(f"version {versions[CANDIDATE]} of {options.name} is the {CHAMPION}: {reason}")
    return 0


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether a value of a metric is better than another one; NaN is the worst."""
    if math.isnan(value) or math.isnan(other):
        return not math.isnan(value)
    return value < other if _SMALLER_IS_BETTER & set(metric.split("_")) else value > other


def _compare(client: MlflowClient, options: PromoteOptions, candidate: str, champion: str | None) -> str:
    """Return why the candidate becomes the champion, or raise a NotBetterError."""
    if champion is None:
        return "there was none before"
    if champion == candidate:
        return "it was so before"
    metric = options.metric
    ours = _value(client, options.name, candidate, metric)
    theirs = _value(client, options.name, champion, metric)
    figures = f"{metric} {_shown(ours)}, that of version {champion} {_shown(theirs)}"
    if options.force:
        return f"{figures}, and --force is true"
    missing = next((v for v, x in ((candidate, ours), (champion, theirs)) if x is None), None)
    if ours is None or theirs is None:
        raise NotBetterError(
            f"version {missing} of {options.name} has no {metric}: name another --metric, or --force true"
        )
    if not is_better(metric, ours, theirs):
        raise NotBetterError(
            f"version {candidate} of {options.name} is no better than the {CHAMPION}: {figures}; --force true makes it "
            f"the {CHAMPION} anyway"
        )
    return figures


def _value(client: MlflowClient, name: str, version: str, metric: str) -> float | None:
    try:
        return float(client.get_model_version(name, version).tags[metric])
    except (KeyError, ValueError):
        return None


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _aliases(client: MlflowClient, name: str, shown: str) -> dict[str, str]:
    """Return the version of each alias of a name, of which the candidate is one."""
    from mlflow.exceptions import MlflowException

    hint = f"python -m pipelines register RUN --name {name}"
    try:
        aliases = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise UserError(f"the registry of {shown} can't be read ({root_cause(error)}): mend that") from None
        raise UserError(f"{name} is not in the registry of {shown} ({root_cause(error)}): {hint}") from None
    if CANDIDATE not in aliases:
        raise UserError(f"{name} has no {CANDIDATE}: {hint}")
    return aliases
