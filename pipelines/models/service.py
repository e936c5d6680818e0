"""One copy of a model behind HTTP: the deployment that Ray Serve runs, with its routes and its batches.

Ray copies the class by value to another process, as it is when the decorators see it. So what it calls is defined above
it, and annotations are evaluated here, unlike elsewhere: FastAPI reads them there, where it finds no names in strings.
"""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from starlette.exceptions import HTTPException

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig
from perceiver.inference import Predictor, load, named_fills
from perceiver.pictures import model_inputs
from perceiver.saving import task_name
from pipelines.models.batching import Batcher
from pipelines.models.messages import (
    ErrorResponse,
    FillsRequest,
    Health,
    ImagesRequest,
    Info,
    PredictResponse,
    RefusedError,
    TextsRequest,
    read_request,
)

app = FastAPI(title="Perceiver IO", redoc_url=None)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": meaning}
    for status, meaning in ((400, "not JSON"), (413, "too large"), (422, "can't be answered"))
}
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [kind.model_json_schema() for kind in (TextsRequest, FillsRequest, ImagesRequest)]}
            }
        },
    }
}


@dataclass(frozen=True)
class Limits:
    """What a copy of the model takes.

    Attributes:
        max_batch_size: Inputs that are computed together at most.
        max_inputs: Inputs in a request at most.
        max_bytes: Bytes in a request at most.
    """

    max_batch_size: int
    max_inputs: int
    max_bytes: int


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, dict(headers or {}))


@app.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    """Answer wrong paths and methods."""
    hint = {404: "there is only /health, /info, /predict and /docs", 405: f"{request.method} is not for this path"}
    return _error(error.status_code, hint.get(error.status_code, str(error.detail)), error.headers)


@app.exception_handler(RefusedError)
async def _refused(_: Request, error: RefusedError) -> JSONResponse:
    return _error(error.status, str(error))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a request's body, but no more of it than is allowed.

    Raises:
        RefusedError: If it is larger.
    """
    refusal = RefusedError(413, f"the request is larger than {max_bytes} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise refusal
    return bytes(body)


def _load(files: Mapping[str, bytes], max_batch_size: int, device: str) -> Predictor:
    with tempfile.TemporaryDirectory(prefix="perceiver-served-") as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        predictor = load(folder, max_batch_size)
    predictor.model.to(device)
    return predictor


@serve.deployment
@serve.ingress(app)
class Service:
    """A copy of a model that answers.

    Args:
        files: Reference to the content of the model folder's files by name.
        name: Where the model is from.
        limits: What it takes.
        device: cpu or cuda.
        threads: Threads that compute.
    """

    def __init__(self, files: ray.ObjectRef, name: str, limits: Limits, device: str, threads: int) -> None:
        # One thread does all that torch does: each other one would have a team of OpenMP threads of its own, and teams
        # that together have more threads than there are cores make computing up to 2.5 times as slow.
        computing = ThreadPoolExecutor(1, "computing", torch.set_num_threads, (threads,))
        contents: dict[str, bytes] = ray.get(files)
        self._predictor = computing.submit(_load, contents, limits.max_batch_size, device).result()
        self._name = name
        self._limits = limits
        self._compute = Batcher(self._predict, limits.max_batch_size, computing)

    @app.get("/health")
    async def health(self) -> Health:
        """Say that the server can answer."""
        return Health()

    @app.get("/info")
    async def info(self) -> Info:
        """Say what is served."""
        config = self._predictor.config
        return Info(
            model=self._name,
            task=task_name(config),
            classes=None if isinstance(config, MaskedLanguageModelConfig) else list(config.class_names),
            image_shape=list(config.image_shape) if isinstance(config, ImageClassifierConfig) else None,
            max_seq_len=None if isinstance(config, ImageClassifierConfig) else config.max_seq_len,
            max_inputs=self._limits.max_inputs,
            max_bytes=self._limits.max_bytes,
        )

    @app.post("/predict", responses=_ERRORS, openapi_extra=_REQUEST)
    async def predict(self, request: Request) -> PredictResponse:
        """Predict: {"texts": [...]}, of a masked language model also {"top_k": 5}; or {"images": [...]}."""
        body = await read_body(request, self._limits.max_bytes)
        # In a thread, because pictures are decoded: meanwhile others are answered.
        inputs, top_k = await asyncio.to_thread(read_request, body, self._predictor.config, self._limits.max_inputs)
        predictions = await asyncio.gather(*(self._compute((x, top_k)) for x in inputs))
        return PredictResponse.model_validate({"predictions": predictions})

    def _predict(self, batch: Sequence[tuple[Any, int]]) -> list[dict[str, Any]]:
        """Predict for inputs of several requests together, each with the number of fills that is wanted."""
        config = self._predictor.config
        inputs = [x for x, _ in batch]
        if isinstance(config, MaskedLanguageModelConfig):
            most = max(top_k for _, top_k in batch)
            found = self._predictor.fill(inputs, most)
            return [
                {"text": text["text"], "fills": named_fills(text, top_k)}
                for text, (_, top_k) in zip(found, batch, strict=True)
            ]
        arguments = model_inputs(inputs, config) if isinstance(config, ImageClassifierConfig) else inputs
        return cast(list[dict[str, Any]], self._predictor.classify(arguments))
