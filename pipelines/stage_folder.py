"""A stage's folder, and what is to be done about it when the pipeline runs again.

stage.json says which settings, data and input model the folder belongs to, and whether the stage is finished. It is
written as running before anything else, and as finished, with the result, after everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from perceiver.errors import UserError
from perceiver.files import DamagedFolderError, read_manifest
from pipelines.config import RunConfig, StageConfig
from pipelines.storage import Storage

if TYPE_CHECKING:  # for it imports the libraries that read data, which takes seconds
    from pipelines.stages import Prepared

STAGE, CONFIG, MODEL, ERROR, SUPERSEDED = "stage.json", "config.yaml", "model", "error.txt", "superseded"
CHECKPOINTS = "checkpoints"
_STATE = {"status", "fingerprint", "data_fingerprint", "synthetic", "settings", "result"}


@dataclass(frozen=True)
class Decision:
    """What is to be done about a stage.

    Attributes:
        action: Start from scratch, go on from the newest checkpoint, skip, or start again after setting the old
            result aside.
        reason: Why, for the user; empty for a first start.
    """

    action: Literal["start", "resume", "skip", "restart"]
    reason: str = ""


class StageFolder:
    """The folder of one stage of one run.

    Args:
        run_folder: Folder of the run.
        name: Name of the stage.
    """

    def __init__(self, run_folder: Storage, name: str) -> None:
        self.run_folder = run_folder
        self.name = name
        self.storage = run_folder / name

    def read_state(self) -> dict[str, Any] | None:
        """Return what stage.json says; None where there is none.

        Raises:
            UserError: If it is damaged.
        """
        file = self.storage / STAGE
        try:
            state = file.read_json()
        except ValueError:
            state = {}
        if state is None or (isinstance(state, dict) and state.keys() >= _STATE):
            return state
        raise UserError(f"{file} is damaged: restore it, or delete {self.storage} to run the stage from the start")

    def decide(self, config: StageConfig, prepared: Prepared) -> Decision:
        """Compare what lies here with what is wanted."""
        state = self.read_state()
        if state is None:
            return Decision("start")
        if state["fingerprint"] != prepared.fingerprint:
            return Decision("restart", _difference(state, config, prepared))
        if state["status"] != "finished":
            return Decision("resume", "it was interrupted")
        if not self._has_model():
            return Decision("resume", "its model is missing or damaged")
        return Decision("skip", "its settings, data and input model are unchanged")

    def has_checkpoint(self) -> bool:
        """Return whether training left a checkpoint here, whole or not."""
        return bool((self.storage / CHECKPOINTS).names())

    def _has_model(self) -> bool:
        try:
            with (self.storage / MODEL).as_local_folder() as folder:
                read_manifest(folder)
        except DamagedFolderError:
            return False
        return True

    def set_aside(self) -> Storage:
        """Move what lies here to a place where it is in nobody's way, and return that."""
        taken = set((self.run_folder / SUPERSEDED).names())
        number = next(i for i in range(1, len(taken) + 2) if f"{self.name}-{i}" not in taken)
        target = self.run_folder / SUPERSEDED / f"{self.name}-{number}"
        self.storage.move(target)
        return target

    def begin(self, config: StageConfig, prepared: Prepared, run: RunConfig) -> None:
        """Note what the folder is for, and clear away what an attempt that failed or died left in it."""
        self.storage.delete_leftovers()
        (self.storage / ERROR).delete()
        write_config(self.storage, config, run)
        self._write(config, prepared, "running", {})

    def finish(self, config: StageConfig, prepared: Prepared, result: Mapping[str, Any]) -> None:
        """Note that all is done."""
        self._write(config, prepared, "finished", result)

    def result(self) -> dict[str, Any]:
        """Return the result of a finished stage."""
        state = self.read_state()
        assert state is not None, "the stage is finished"
        result: dict[str, Any] = state["result"]
        return result

    def _write(self, config: StageConfig, prepared: Prepared, status: str, result: Mapping[str, Any]) -> None:
        from pipelines.stages import settings_with_effect

        state = {
            "status": status,
            "fingerprint": prepared.fingerprint,
            "data_fingerprint": prepared.data_fingerprint,
            "synthetic": prepared.synthetic,
            "settings": settings_with_effect(config),
            "result": dict(result),
        }
        (self.storage / STAGE).write_json(state)


def write_config(folder: Storage, config: Any, run: RunConfig, name: str = CONFIG) -> None:
    """Write a YAML file that the same verb takes as --config."""
    text = yaml.safe_dump(plain({**asdict(config), **asdict(run)}), sort_keys=False, allow_unicode=True)
    (folder / name).write_bytes(text.encode())


def plain(value: Any) -> Any:
    """Turn tuples into lists, for YAML and for comparison with what was read from JSON."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _difference(state: Mapping[str, Any], config: StageConfig, prepared: Prepared) -> str:
    """Say which settings changed, or else that the data or the input model did."""
    from pipelines.stages import settings_with_effect

    before, now = flat(state["settings"]), flat(plain(settings_with_effect(config)))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        shown = [f"{name} {before.get(name)} -> {now[name]}" for name in changed[:3]]
        return ", ".join(shown) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return "other data" if state["data_fingerprint"] != prepared.data_fingerprint else "another input model"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values
