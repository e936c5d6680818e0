"""The options of predict and batch-predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.config import check_no_password

Device = Literal["auto", "cpu", "cuda"]

OUTPUT_SUFFIXES = (".jsonl", ".csv", ".parquet")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be 1 or more")


@dataclass(frozen=True)
class PredictConfig:
    """Classify texts or images, or fill the [MASK]s of texts, with a trained model."""

    model: str
    """A model/ folder, the folder of a stage or of a run, whose last stage counts, a URI of one of these, or MLflow's
    runs:/RUN_ID/model, models:/NAME@ALIAS or models:/NAME/VERSION."""
    text: tuple[str, ...] = ()
    input: str | None = None
    """A .txt file with a text per line, a .csv, .jsonl, .json (an object per line) or .parquet file, an image, or a
    folder of these (null: --text, or else a text per line of the standard input)."""
    text_column: str = "text"
    """Column that holds the text."""
    image_column: str = "image"
    """Column that holds the image: its path, or, in a .parquet file, its content."""
    id_column: str | None = None
    """Column that the predictions repeat, as text (null: none)."""
    output: str | None = None
    """File to write: .jsonl, .csv or .parquet (null: print)."""
    format: Literal["table", "jsonl"] | None = None
    """How to print (null: a table on a terminal, else JSON lines)."""
    top_k: int | None = None
    """Tokens per [MASK], of a masked language model (null: 5)."""
    resize: bool = True
    """Whether images of another size than the model was trained on are resized, or refused."""
    batch_size: int = 32
    """Inputs per forward pass."""
    device: Device = "auto"
    """Where to compute (auto: on a GPU if there is one)."""
    tracking_uri: str | None = None
    """MLflow that has the model (null: MLFLOW_TRACKING_URI, else mlflow.db in ./runs)."""

    def __post_init__(self) -> None:
        check_no_password(self.tracking_uri)
        _require_positive(self, "batch_size", "top_k")
        if self.text and self.input is not None:
            raise ValueError("--text and --input are both given: give one of them")
        if self.id_column is not None and self.input is None:
            raise ValueError("id_column is a column of a file, but there is no --input: leave it out")
        if self.output is not None and self.format is not None:
            raise ValueError("--output and --format are both given: the suffix of --output says what is written")
        if self.output is not None and Path(self.output).suffix.lower() not in OUTPUT_SUFFIXES:
            raise ValueError(f"output is {self.output}, but must end with {', '.join(OUTPUT_SUFFIXES)}")
        if "://" in (self.output or ""):
            raise ValueError(f"output is {self.output}, but must be a local file")


TEXT_HELP = "A text, or several; the option may be given more than once."


@dataclass(frozen=True)
class BatchPredictConfig:
    """Classify files that may not fit in memory, on any number of Ray actors.

    The predictions are Parquet files in a folder. The same command goes on where a killed one stopped.
    """

    model: str
    """A model/ folder, the folder of a stage or of a run, whose last stage counts, a URI of one of these, or MLflow's
    runs:/RUN_ID/model, models:/NAME@ALIAS or models:/NAME/VERSION."""
    output: str
    """Folder to write, on a disk that all actors share."""
    input: tuple[str, ...] = ()
    text_column: str = "text"
    """Column that holds the text."""
    image_column: str = "image"
    """Column that holds the image: its path, or, in a .parquet file, its content."""
    id_column: str | None = None
    """Column that the predictions repeat, as text (null: none; they have file and row anyway)."""
    resize: bool = True
    """Whether images of another size than the model was trained on are resized, or count as unreadable."""
    num_actors: int = 1
    """Processes that hold the model; they share the cores, or have a GPU each."""
    batch_size: int = 32
    """Inputs per forward pass."""
    rows_per_shard: int = 2000
    """Rows of an output file at most; as many are lost per actor if the command is killed."""
    device: Device = "auto"
    """Where to compute (auto: on GPUs if the cluster has some)."""
    tracking_uri: str | None = None
    """MLflow that has the model (null: MLFLOW_TRACKING_URI, else mlflow.db in ./runs)."""

    def __post_init__(self) -> None:
        check_no_password(self.tracking_uri)
        _require_positive(self, "num_actors", "batch_size", "rows_per_shard")
        if not self.input:
            raise ValueError("--input is missing: name files or folders")
        if remote := next((path for path in (*self.input, self.output) if "://" in path), None):
            raise ValueError(f"{remote} is not a local path: name files and folders on a disk that all actors share")


INPUT_HELP = (
    "Files or folders on a disk that all actors share: .txt (a text per line), .csv, .jsonl, .json (an object per "
    "line), .parquet, or images."
)
