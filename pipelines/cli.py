"""From the command line to a checked configuration: the only place that knows jsonargparse."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from pipelines.config import (
    ImageClassifierStageConfig,
    MLMStageConfig,
    RunConfig,
    SentimentConfig,
    TextClassifierStageConfig,
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

tools:
  convert           turn a checkpoint of krasserm/perceiver-io into a model folder

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


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and what may have been meant."""

    def __init__(self, verb: str, description: str | None) -> None:
        prog = f"{PROGRAM} {verb}"
        super().__init__(prog=prog, usage=f"{prog} [options]", description=description, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(self._plain(" ".join(str(message).split())))

    def _plain(self, message: str) -> str:
        """Say what the parser says in the user's words."""
        if unknown := re.search(r"[Uu]nrecognized arguments: ([^\s=]+)", message):
            known = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[1], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"{self.prog} -h lists the options"
            return f"unknown option {unknown[1]}: {hint}"
        message = re.sub(r'^Parser key "([\w.]+)": ', r"--\1: ", message)
        message = re.sub(r"Expected an? <class '(\w+)'>", r"expected \1", message)
        message = re.sub(r"Expected an? typing\.Literal\[(.+?)\]", r"expected one of \1", message)
        return re.sub(r"\. Got value: ", ", but got ", message)


def fail(message: str) -> NoReturn:
    """End the program because of a mistake of the user: one line, exit status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def pipeline_parser(verb: str) -> ArgumentParser:
    """Build the parser of a pipeline."""
    kind = PIPELINES[verb]
    parser = _Parser(verb, kind.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(kind, None)
    parser.add_class_arguments(RunConfig, None)
    parser.set_defaults({"run_name": verb})
    return parser


def parse(argv: Sequence[str]) -> Command | ConvertCommand:
    """Turn a command line into a checked command; exits with status 2 and one line if it can't be understood."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_OVERVIEW)
        sys.exit(0)
    verb, *options = argv
    if verb == "convert":
        return _parse_convert(options)
    if verb not in PIPELINES:
        close = difflib.get_close_matches(verb, [*PIPELINES, "convert"], n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join([*PIPELINES, 'convert'])}"
        fail(f"unknown verb {verb}: {hint}")
    parser = pipeline_parser(verb)
    values = _checked(parser, lambda: parser.instantiate(parser.parse_args(options)))
    config = _checked(parser, lambda: _pick(PIPELINES[verb], values))
    return Command(verb, config, _pick(RunConfig, values))


def _parse_convert(options: Sequence[str]) -> ConvertCommand:
    parser = _Parser("convert", ConvertCommand.__doc__)
    parser.add_argument("checkpoint", type=str, help="Lightning checkpoint file (.ckpt).")
    parser.add_argument("out", type=str, help="Folder to create.")
    parser.add_class_arguments(ConvertCommand, None, skip={"checkpoint", "out"})
    return _pick(ConvertCommand, parser.parse_args(options))


def _checked(parser: ArgumentParser, make: Callable[[], Any]) -> Any:
    """Turn a refused value into a message of the parser."""
    try:
        return make()
    except ValueError as error:
        parser.error(str(error))


def _pick(kind: type, values: Namespace) -> Any:
    return kind(**{f.name: values[f.name] for f in fields(kind)})
