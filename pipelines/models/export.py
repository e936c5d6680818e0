"""`python -m pipelines export`: a trained model for runtimes that know nothing of this project.

The file is complete: beside the graph and its weights it holds, as text, config.json and tokenizer.json of the model,
and interface.json, which describes inputs and output. ONNX has them among its metadata, torch.export among the extra
files.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from perceiver.config import ModelConfig
from perceiver.errors import UserError
from perceiver.export import (
    check_inputs,
    dynamic_shapes,
    export_program,
    input_names,
    interface_of,
    output_name,
    outputs_of,
)
from perceiver.saving import CONFIG, TOKENIZER, SavedModel, config_to_json, load_model, task_name
from pipelines.models.export_options import ExportOptions
from pipelines.models.where import model_folder
from pipelines.storage import Storage

INTERFACE = "interface.json"
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCES = {"onnx": 1e-4, "torch-export": 1e-5}
"""Greatest difference between a number that the exported model computes and the model's own."""

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_ONNX_BYTES = 2**31  # the format's limit for a file

Run = Callable[..., Tensor]


def export(options: ExportOptions) -> int:
    """Export a model, compare the file's outputs with the model's own, and put it in its place if they agree.

    Returns:
        The exit status: 1 if they differ.

    Raises:
        UserError: If there is no model, the file can't be written there, or a package is missing.
    """
    target = Storage.from_uri(options.output, "output")
    _check(options, target)
    with model_folder(options.model, options.tracking_uri) as folder:
        saved = load_model(folder)
    num_bytes = sum(parameter.nbytes for parameter in saved.model.parameters())
    if options.format == "onnx" and num_bytes >= _ONNX_BYTES:
        raise UserError("format is onnx, whose files hold 2 GB, but the model has more: export it as torch-export")
    batch_size = None if options.batch == "dynamic" else options.batch
    with tempfile.TemporaryDirectory(prefix="perceiver-export-") as temporary:
        file = Path(temporary) / f"model{SUFFIXES[options.format]}"
        with _quiet():
            program = export_program(outputs_of(saved.model, saved.config), saved.config, batch_size)
            run = _write(file, program, saved, options)
            difference = greatest_difference(run, saved, batch_size)
        tolerance = TOLERANCES[options.format]
        if not difference <= tolerance:
            shown = f"differs from the model by {difference:.2g}, more than {tolerance:.0e}"
            print(f"error: the exported program {shown}: {target} was not written", file=sys.stderr)
            return 1
        target.write_bytes(file.read_bytes())
    _report(target, saved.config, options, difference)
    return 0


def _check(options: ExportOptions, target: Storage) -> None:
    """Find the mistakes that need no model."""
    suffix = SUFFIXES[options.format]
    if not target.name.endswith(suffix):
        raise UserError(f"output is {options.output}, but {options.format} files end in {suffix}: name it so")
    if target.is_dir():
        raise UserError(f"output {target} is a folder: name a file in it")
    if target.is_local and not os.access(target.parent.path, os.W_OK):
        raise UserError(f"output {target} can't be written: name a file in a folder that exists and is yours")
    if options.format == "onnx" and (missing := [name for name in _NEEDED if find_spec(name) is None]):
        raise UserError(f"format onnx needs {', '.join(missing)}: pip install '.[export]' in this project's folder")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from telling what it looked for, and what it renamed, on its way to ONNX."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def texts_of(saved: SavedModel, batch_size: int | None) -> dict[str, str]:
    """Return what an exported file says of its model, by name."""
    texts = {CONFIG: config_to_json(saved.config), INTERFACE: json.dumps(interface_of(saved.config, batch_size))}
    return texts | ({TOKENIZER: saved.tokenizer.to_str()} if saved.tokenizer else {})


def _write(file: Path, program: ExportedProgram, saved: SavedModel, options: ExportOptions) -> Run:
    """Write a program in the format wanted, and return what runs the file."""
    batch_size = None if options.batch == "dynamic" else options.batch
    texts = texts_of(saved, batch_size)
    if options.format == "torch-export":
        torch.export.save(program, file, extra_files=texts)
        return torch.export.load(file).module()
    names = input_names(saved.config)
    onnx_program = torch.onnx.export(
        program,
        input_names=names,
        output_names=[output_name(saved.config)],
        opset_version=options.opset,
        dynamic_shapes=dynamic_shapes(saved.config, batch_size),
        dynamo=True,
        verbose=False,
    )
    assert onnx_program is not None, "with dynamo, a program is returned"
    onnx_program.model.metadata_props.update(texts)
    onnx_program.save(file, external_data=False)
    return _onnx_runner(file, names)


def _onnx_runner(file: Path, names: list[str]) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        (output,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        return torch.from_numpy(output)

    return run


def greatest_difference(run: Run, saved: SavedModel, batch_size: int | None = None) -> float:
    """Compare an exported model with the model itself on random inputs of many sizes, with and without padding.

    Args:
        run: Runs the exported model.
        saved: The model.
        batch_size: Inputs that the exported model takes (none: any number).

    Returns:
        The greatest difference between two numbers, NaN if one is NaN and the other is not.
    """
    outputs = outputs_of(saved.model, saved.config)
    greatest = torch.tensor(0.0)
    with torch.no_grad():
        for inputs in check_inputs(saved.config, batch_size):
            greatest = torch.maximum(greatest, (run(*inputs) - outputs(*inputs)).abs().max())
    return greatest.item()


def _report(target: Storage, config: ModelConfig, options: ExportOptions, difference: float) -> None:
    interface = interface_of(config, None if options.batch == "dynamic" else options.batch)
    print(f"{target}: {task_name(config)}; greatest difference from the model's own outputs: {difference:.1e}")
    for kind in ("inputs", "outputs"):
        for name, facts in interface[kind].items():
            shape = ", ".join(map(str, facts["shape"]))
            print(f"  {kind[:-1]:6}  {name}: {facts['type']} ({shape}), {facts['meaning']}")
