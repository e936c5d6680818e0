"""What a search may change: fields of a pipeline's configuration, and the values that each may take.

A space is a YAML file with one line per field, each a distribution:

    encoder.num_latents: {choice: [32, 64, 128]}
    encoder.num_layers: {integer: [1, 4]}
    dropout: {uniform: [0.0, 0.3]}
    optimizer.learning_rate: {log-uniform: [1.0e-4, 1.0e-2]}
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from perceiver.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Values = Mapping[str, Any]
"""Value of each field of a space, by its dotted name."""

Config = TypeVar("Config", bound="DataclassInstance")

SPACES = Path(__file__).parent / "spaces"
_HEADS = "_heads"
_BUDGET = "max_epochs"


def load_space(path: Path, base: Any) -> dict[str, BaseDistribution]:
    """Read a space.

    Args:
        path: YAML file.
        base: Configuration that the space changes.

    Raises:
        UserError: If the file is no space for this configuration.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"--space {path} does not exist") from None
    except OSError as error:
        raise UserError(f"--space {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--space {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--space {path} has to hold fields, such as encoder.num_latents: {{choice: [32, 64]}}")
    return {str(field): _distribution(str(field), spec, base, path) for field, spec in content.items()}


def _distribution(field: str, spec: Any, base: Any, path: Path) -> BaseDistribution:
    try:
        hint = _field_type(base, field)
        return _checked(_parse(spec), hint)
    except ValueError as error:
        raise UserError(f"--space {path}: {field} {error}") from None


def _parse(spec: Any) -> BaseDistribution:
    """Make a distribution of `{kind: [...]}`."""
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ValueError(f"is {spec!r}, but has to be one of {_examples()}")
    ((kind, numbers),) = spec.items()
    if kind not in _KINDS:
        raise ValueError(f"has {kind}, but has to be one of {_examples()}")
    if not isinstance(numbers, list):
        raise ValueError(f"has {kind}: {numbers!r}, but has to hold a list, such as {_KINDS[kind][1]}")
    return _KINDS[kind][0](numbers)


def _choice(values: Sequence[Any]) -> BaseDistribution:
    if not values:
        raise ValueError("has an empty choice: name the values to choose from")
    for value in values:
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"has the choice {value!r}, but a choice is a number, a text, true, false or null")
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"has a choice {list(values)} that holds a value twice")
    return CategoricalDistribution(values)


def _uniform(bounds: Sequence[Any], log: bool = False) -> BaseDistribution:
    low, high = _bounds(bounds)
    if log and low <= 0:
        raise ValueError(f"has the minimum {low}, but log-uniform needs one above 0")
    return FloatDistribution(float(low), float(high), log=log)


def _integer(bounds: Sequence[Any], log: bool = False) -> BaseDistribution:
    low, high = _bounds(bounds)
    if not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"has the range {list(bounds)}, but integer needs whole numbers")
    if log and low < 1:
        raise ValueError(f"has the minimum {low}, but log-integer needs 1 or more")
    return IntDistribution(low, high, log=log)


def _bounds(bounds: Sequence[Any]) -> tuple[Any, Any]:
    if len(bounds) != 2 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in bounds):
        raise ValueError(f"has the range {list(bounds)}, but a range is a minimum and a maximum, such as [1, 4]")
    low, high = bounds
    if low > high:
        raise ValueError(f"has the minimum {low} above the maximum {high}: exchange them")
    return low, high


_KINDS: dict[str, tuple[Callable[[Sequence[Any]], BaseDistribution], str]] = {
    "choice": (_choice, "{choice: [32, 64]}"),
    "uniform": (_uniform, "{uniform: [0.0, 0.3]}"),
    "log-uniform": (lambda bounds: _uniform(bounds, log=True), "{log-uniform: [1.0e-4, 1.0e-2]}"),
    "integer": (_integer, "{integer: [1, 4]}"),
    "log-integer": (lambda bounds: _integer(bounds, log=True), "{log-integer: [16, 256]}"),
}


def _examples() -> str:
    return ", ".join(example for _, example in _KINDS.values())


def _field_type(base: Any, field: str) -> Any:
    """Return the type of a field of a configuration, or say what may have been meant."""
    config, names = base, field.split(".")
    for depth, name in enumerate(names):
        known = [f.name for f in fields(config)] if is_dataclass(config) else []
        if name not in known:
            names_known = _field_names(base)
            close = difflib.get_close_matches(field, names_known, n=1)
            raise ValueError(f"is no field of the configuration{f': did you mean {close[0]}?' if close else ''}")
        if depth < len(names) - 1:
            config = getattr(config, name)
    value = getattr(config, names[-1])
    if is_dataclass(value):
        raise ValueError(f"is a group of fields: name one of them, such as {field}.{_field_names(value)[0]}")
    if names[-1] == _BUDGET:
        raise ValueError("is the budget of a trial: set it beside the space, not in it")
    return get_type_hints(type(config))[names[-1]]


def _field_names(config: Any, prefix: str = "") -> list[str]:
    names = []
    for f in fields(config):
        value = getattr(config, f.name)
        names += _field_names(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]
    return names


def _checked(distribution: BaseDistribution, hint: Any) -> BaseDistribution:
    """Check that a field takes what a distribution gives."""
    values: Sequence[Any]
    match distribution:
        case CategoricalDistribution():
            values = distribution.choices
        case FloatDistribution() | IntDistribution():
            values = (distribution.low, distribution.high)
    for value in values:
        if not _accepts(hint, value):
            raise ValueError(f"takes {_shown(hint)}, but not {value!r}")
    return distribution


def _accepts(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_accepts(part, value) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _shown(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    plain = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts", type(None): "null"}
    parts = get_args(hint) or (hint,)
    return " or ".join(plain.get(part, str(part)) for part in parts)


def with_values(config: Config, values: Values) -> Config:
    """Return a configuration with other values in some of its fields.

    Args:
        config: A frozen dataclass.
        values: New values by dotted name.

    Raises:
        ValueError: If the configuration refuses the combination.
    """
    own = {name: value for name, value in values.items() if "." not in name}
    below: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = value
    groups = {name: with_values(getattr(config, name), part) for name, part in below.items()}
    return replace(config, **own, **groups)


def shown(value: Any) -> str:
    """Return a value as it is shown to the user."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def value_of(config: Any, field: str) -> Any:
    """Return the value of a field by its dotted name; None where there is none."""
    for name in field.split("."):
        config = getattr(config, name, None)
    return config


def with_dividing_heads(config: Any, values: Values, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Replace numbers of heads that do not divide the channels that they share by the nearest that do.

    Args:
        config: Configuration that the values change.
        values: A value for each field of the space.
        space: Which numbers of heads there are. Where none of them divides the channels, the value stays.
    """
    mended = dict(values)
    for field, distribution in space.items():
        if not field.endswith(_HEADS):
            continue
        channels = _shared_channels(field, lambda name: mended[name] if name in mended else value_of(config, name))
        dividing = [heads for heads in _numbers(distribution) if heads and not any(c % heads for c in channels)]
        if dividing:
            mended[field] = min(dividing, key=lambda heads: (abs(heads - mended[field]), heads))
    return mended


def _numbers(distribution: BaseDistribution) -> Sequence[int]:
    match distribution:
        case CategoricalDistribution():
            return [value for value in distribution.choices if isinstance(value, int)]
        case IntDistribution():
            return range(distribution.low, distribution.high + 1)
        case _:
            return []


def _shared_channels(field: str, value: Callable[[str], Any]) -> list[int]:
    """Return the channels that heads have to divide: those of queries and keys, and those of values."""
    section, _, name = field.rpartition(".")
    prefix = f"{section}.{name.removesuffix(_HEADS)}"
    default = value("encoder.num_latent_channels")
    if section.endswith("decoder"):
        default = value(f"{section}.num_output_channels") or default
    queries_and_keys = value(f"{prefix}_qk_channels") or default
    return [queries_and_keys, value(f"{prefix}_v_channels") or queries_and_keys]
