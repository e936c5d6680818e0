"""From the command line to a checked configuration: the only place that knows jsonargparse."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from pipelines.config import (
    ImageClassifierStageConfig,
    MLMStageConfig,
    RunConfig,
    SentimentConfig,
    TextClassifierStageConfig,
    check_no_password,
)

set_parsing_settings(docstring_parse_attribute_docstrings=True)

PROGRAM = "python -m pipelines"
PipelineConfig = MLMStageConfig | TextClassifierStageConfig | ImageClassifierStageConfig | SentimentConfig

PIPELINES: dict[str, type] = {
    "sentiment": SentimentConfig,
    "mlm": MLMStageConfig,
    "text-classifier": TextClassifierStageConfig,
    "image-classifier": ImageClassifierStageConfig,
}

_OVERVIEW = f"""usage: {PROGRAM} VERB [options]

Train Perceiver IO models on Ray, tracked in MLflow.

pipelines:
  sentiment         pretrain on texts, classify with the encoder frozen, then fine-tune all of it
  mlm               masked-language pretraining alone
  text-classifier   a text classifier from scratch, from a pretrained encoder, or from another classifier
  image-classifier  an image classifier

models:
  predict           classify texts or images, or fill masks, with a trained model
  batch-predict     classify files that may not fit in memory, on Ray actors
  serve             answer HTTP requests with a trained model
  register RUN      give a trained model to MLflow's model registry, as the candidate
  promote NAME      make the candidate of the registry the champion, if it is better
  export            write a trained model as ONNX, or as a program of torch.export
  convert           turn a checkpoint of krasserm/perceiver-io into a model folder

runs:
  submit VERB       let a Ray cluster run a pipeline
  doctor [VERB]     say what a run would use and what is wrong with it
  report RUN        draw report.html, the page of a run, again
  compare RUN RUN   say how runs differ: settings, metrics, and the samples they predict differently
  sync-mlflow RUN   let MLflow have what it lacks of a run, because it was down or is another one

`{PROGRAM} VERB -h` shows every option of a verb with its default and its meaning.
"""


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
        verb: What to do.
        config: Configuration of the pipeline.
        run: Where it runs and what it leaves behind.
    """

    verb: str
    config: PipelineConfig
    run: RunConfig


@dataclass(frozen=True)
class ConvertCommand:
    """Turn a Lightning checkpoint of krasserm/perceiver-io into a model folder."""

    checkpoint: str
    """Lightning checkpoint file (.ckpt)."""
    out: str
    """Folder to create."""
    tokenizer: str | None = None
    """Tokenizer file (tokenizer.json) of a text model; the checkpoint doesn't hold it."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of an image (null: from the checkpoint)."""
    num_layers: int | None = None
    """Encoder layers (null: from the checkpoint)."""
    num_heads: int | None = None
    """Heads of the encoder (null: from the checkpoint)."""
    num_decoder_heads: int | None = None
    """Heads of the decoder (null: from the checkpoint)."""


@dataclass(frozen=True)
class SyncTarget:
    """The MLflow that is to have a run."""

    experiment: str | None = None
    """MLflow experiment (null: the run's own)."""
    uri: str | None = None
    """MLflow tracking URI (null: MLFLOW_TRACKING_URI, else the run's own, else mlflow.db beside the run)."""

    def __post_init__(self) -> None:
        check_no_password(self.uri)


@dataclass(frozen=True)
class SyncCommand:
    """Let MLflow have what it lacks of a run: points, parameters, tags, fills and models. Nothing is sent twice."""

    run: str
    """Folder or URI of a run, or its name in storage_path."""
    storage_path: str = "runs"
    """Folder or URI of all results."""
    tracking: SyncTarget = field(default_factory=SyncTarget)
    """MLflow."""


_REPHRASED = (  # what jsonargparse says, and what we say
    (r'^Parser key "([\w.]+)": ', r"--\1: "),
    (r"^argument (\S+): expected one argument", r"\1 needs a value"),
    (r"^Problems parsing config: (.*?)( in \"<unicode string>\")?, line", r"--config: not valid YAML: \1, line"),
    (r"^Unexpected config:.*", "--config: the file has to hold options, such as run_name: first"),
    (r"^('utf-8' codec .*)", r"--config: not UTF-8: \1"),
    (
        r"Does not validate .*? Errors: - Expected (.+?)(\. Got value: .*?)? - .* Given value: ",
        r"Expected \1 or null, but got ",
    ),
    (r"\. Got value: ?", ", but got "),
    (r"Expected an? <class '(\w+)'>", r"expected \1"),
    (r"Expected an? typing\.Literal\[(.+?)\]", r"expected one of \1"),
    (r"Expected a tuple with (\d+) elements", r"expected a list of \1 values"),
    (r"expected tuple", "expected a list such as [a, b]"),
    (r"expected str(.*) but got (.+)", r"expected text\1 but got \2: put quotes around it"),
    (r" got $", " got nothing"),
)
_PASSWORD = re.compile(r"\w://[^/@\s]*:[^/@\s]*@")
_KEY = re.compile(r"\w://\S*[?&][^=&]*(secret|password|token|credential|sig|key)[^=&]*=", re.IGNORECASE)
_UNKNOWN = (
    r"^unrecognized arguments: ([^\s=]+)",
    r"^Option '(.+)' is not accepted",
    r"^Group '(.+)' does not accept option '(.+)'",
)


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and what may have been meant."""

    def __init__(self, verb: str, description: str | None, program: str = PROGRAM) -> None:
        prog = f"{program} {verb}"
        super().__init__(prog=prog, usage=f"{prog} [options]", description=description, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(self._plain(" ".join(str(message).split())))

    def _plain(self, message: str) -> str:
        """Say what the parser says in the user's words."""
        if missing := re.search(r"^the following arguments are required: (\w+)$", message):
            dashes = "--" if f"--{missing[1]}" in self._option_string_actions else ""
            return f"{dashes}{missing[1]} is missing: {self.prog} -h lists the options"
        for pattern in _UNKNOWN:
            if unknown := re.search(pattern, message):
                return self._unknown(".".join(unknown.groups()))
        for pattern, replacement in _REPHRASED:
            message = re.sub(pattern, replacement, message)
        return message

    def _unknown(self, name: str) -> str:
        dashes = "--" if name.startswith("-") else ""  # there are none in a file
        known = [dashes + action.dest for action in self._actions if action.dest]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"{self.prog} -h lists the options"
        return f"unknown option {name}: {hint}"


def fail(message: str) -> NoReturn:
    """End the program because of a mistake of the user: one line, exit status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def pipeline_parser(
    verb: str, program: str = PROGRAM, others: Sequence[type] = (), run_name: str = ""
) -> ArgumentParser:
    """Build the parser of a pipeline.

    Args:
        verb: Name of the pipeline.
        program: Program that takes it.
        others: Dataclasses with further options.
        run_name: Default name of a run (empty: the verb).
    """
    kind = PIPELINES[verb]
    parser = _Parser(verb, others[0].__doc__ if others else kind.__doc__, program)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    for part in (*others, kind, RunConfig):
        parser.add_class_arguments(part, None)
    parser.set_defaults({"run_name": run_name or verb})
    return parser


def parse(argv: Sequence[str]) -> Any:
    """Turn a command line into a checked command; exits with status 2 and one line if it can't be understood."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_OVERVIEW)
        sys.exit(0)
    verb, *options = argv
    if verb == "convert":
        return _parse_convert(options)
    if verb == "sync-mlflow":
        return parse_options(verb, SyncCommand, options, "run", "Folder or URI of a run, or its name in storage_path.")
    if verb in ("doctor", "submit"):
        from pipelines import tool_cli

        return tool_cli.parse_doctor(options) if verb == "doctor" else tool_cli.parse_submit(options)
    from pipelines.models.tools import TOOLS, parse_tool

    if verb in TOOLS:
        return parse_tool(verb, options)
    check_verb(verb, [*PIPELINES, *TOOLS, "doctor", "submit", "convert", "sync-mlflow"])
    return parse_pipeline(verb, options)[0]


def check_verb(verb: str, known: Sequence[str]) -> None:
    """Exit with status 2 and one line if there is no such verb."""
    if verb not in known:
        close = difflib.get_close_matches(verb, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
        fail(f"unknown verb {verb}: {hint}")


def parse_pipeline(
    verb: str, options: Sequence[str], program: str = PROGRAM, others: Sequence[type] = (), run_name: str = ""
) -> tuple[Command, tuple[Any, ...]]:
    """Turn the options of a pipeline into a checked command, and further options into dataclasses of their own.

    Args:
        verb: Name of the pipeline.
        options: What follows it on the command line.
        program: Program that takes them.
        others: Dataclasses with further options.
        run_name: Default name of a run (empty: the verb).

    Returns:
        The command, and an object of each of the other dataclasses.
    """
    parser = pipeline_parser(verb, program, others, run_name)
    values = _checked(parser, lambda: parser.parse_args(options))
    _check_complete(parser, values)
    _check_secrets(values)
    built = _checked(parser, lambda: parser.instantiate(values), values)
    config = _checked(parser, lambda: _pick(PIPELINES[verb], built), values)
    further = tuple(_checked(parser, partial(_pick, kind, built), values) for kind in others)
    return Command(verb, config, _pick(RunConfig, built)), further


def parse_options(
    verb: str,
    kind: type,
    options: Sequence[str],
    positional: str = "",
    meaning: str = "",
    several: bool = False,
    repeated: Mapping[str, str] | None = None,
) -> Any:
    """Turn the options of a tool into the dataclass that describes them.

    Args:
        verb: Name of the tool.
        kind: The dataclass.
        options: What follows the verb on the command line.
        positional: Field whose value needs no name before it, if there is one.
        meaning: What that value is.
        several: Whether that field takes any number of values.
        repeated: Fields whose options take any number of texts, and what these are.
    """
    parser = _Parser(verb, kind.__doc__)
    repeated = repeated or {}
    parser.add_class_arguments(kind, None, skip={*repeated, *([positional] if positional else [])})
    for name, help_text in repeated.items():
        parser.add_argument(
            f"--{name}", type=str, metavar=name.upper(), help=help_text, nargs="+", action="extend", default=[]
        )
    if positional:
        parser.add_argument(
            positional, type=str, metavar=positional.upper(), help=meaning, nargs="+" if several else None
        )
    values = _checked(parser, lambda: parser.parse_args(options))
    return _checked(parser, lambda: _pick(kind, parser.instantiate(values)), values)


def _parse_convert(options: Sequence[str]) -> ConvertCommand:
    parser = _Parser("convert", ConvertCommand.__doc__)
    parser.add_argument("checkpoint", type=str, help="Lightning checkpoint file (.ckpt).")
    parser.add_argument("out", type=str, help="Folder to create.")
    parser.add_class_arguments(ConvertCommand, None, skip={"checkpoint", "out"})
    return _pick(ConvertCommand, parser.parse_args(options))


def _checked(parser: ArgumentParser, make: Callable[[], Any], values: Namespace | None = None) -> Any:
    """Turn a refused value into a message of the parser."""
    try:
        return make()
    except ValueError as error:
        parser.error(_with_full_name(str(error), values or Namespace()))


def _with_full_name(message: str, values: Namespace) -> str:
    """Name an option in full where a dataclass, which doesn't know its place in the configuration, refused a value."""
    if refused := re.match(r"(\w+) is (.+?),? but ", message):
        name, shown = refused.groups()
        options = [
            key for key, value in values.items() if key.split(".")[-1] == name and shown in (str(value), repr(value))
        ]
        if len(options) == 1:
            return options[0] + message.removeprefix(name)
    return message


def _check_complete(parser: ArgumentParser, values: Namespace) -> None:
    """Refuse what a file may hold instead of options: `data: 3`, or a name with nothing behind it."""
    for name, default in parser.get_defaults().items():
        group = name.rpartition(".")[0]
        if group and not isinstance(values.get(group), Namespace):
            parser.error(f"{group} has to hold options such as {name}: indent them below it, or remove it")
        if values.get(name) is None and default is not None:
            parser.error(f"{name} has no value: give one, or remove it")


def _check_secrets(values: Namespace) -> None:
    """Refuse a password or key in an option, but for MLflow's URI, which has a check of its own."""
    for name, value in values.items():
        if isinstance(value, str) and name != "tracking.uri" and (_PASSWORD.search(value) or _KEY.search(value)):
            fail(
                f"{name} holds a password or key, which config.yaml, MLflow and jobs would show: leave it out, and set "
                "it in the environment"
            )


def _pick(kind: type, values: Namespace) -> Any:
    return kind(**{f.name: values[f.name] for f in fields(kind)})
