"""Both servers answer what the model says, and ours refuses everything else with a reason and goes on."""

from __future__ import annotations

import base64
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from perceiver.errors import UserError
from perceiver.inference import load
from perceiver.pictures import model_inputs, read_picture
from pipelines.models.promote import promote
from pipelines.models.registry import CHAMPION, Origin, add_candidate
from pipelines.models.registry_options import PromoteOptions
from pipelines.models.serve import serve
from pipelines.models.serve_options import ServeOptions
from tests.mlflow_server import free_port
from tests.model_servers import ModelServer, mlflow_model_server, own_server
from tests.pipelines.models.kinds import CONFIGS, IMAGE, IMAGE_SHAPE, MLM, TEXT, save
from tests.pipelines.models.test_pyfunc import png
from tests.ray_head import ray_head

REPOSITORY = Path(__file__).parents[3]

TEXTS = ["what a mess", "a good film, and i have watched it twice", "", "film " * 200]
MAX_BYTES = 20_000


def ask(server: ModelServer, body: bytes, path: str = "/predict", method: str = "POST") -> tuple[int, Any]:
    """Return status and content of an answer."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


def test_a_port_that_is_taken_is_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="choose another --host or --port"):
            serve(ServeOptions(str(tmp_path), port=other.getsockname()[1]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_replicas": 10_000}, "cores"),
        ({"host": "no.such.host.invalid"}, "can't listen"),
        ({"device": "cuda", "num_replicas": 10_000}, "GPUs"),
    ],
)
def test_what_cannot_be_had_is_found_before_ray_starts(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        serve(ServeOptions(**{"model": str(tmp_path), "port": 18_765, **changes}))


@pytest.mark.parametrize("changes", [{"port": 0}, {"max_inputs": 0}, {"max_batch_size": 0}, {"device": "tpu"}])
def test_wrong_options_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is "):
        ServeOptions("model", **changes)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ModelServer]]:
    """A text classifier's folder, and our server of it."""
    root = tmp_path_factory.mktemp("served")
    model = save(TEXT, root / "model")
    with own_server(str(model), root / "log.txt", [f"--max_bytes={MAX_BYTES}", "--max_inputs=8"]) as server:
        yield model, server


def assert_equal(answers: list[dict[str, Any]], expected: list[Any]) -> None:
    assert len(answers) == len(expected)
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["label"] == prediction["label"]
        assert answer["probabilities"] == pytest.approx(prediction["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_our_server_answers_what_the_model_says(classifier: tuple[Path, ModelServer]) -> None:
    model, server = classifier
    status, answer = ask(server, json.dumps({"texts": TEXTS}).encode())
    assert status == 200
    assert_equal(answer["predictions"], load(model).classify(TEXTS))
    assert ask(server, b"", "/health", "GET") == (200, {"status": "ok"})
    status, info = ask(server, b"", "/info", "GET")
    assert (status, info["task"], info["classes"]) == (200, "text_classifier", ["negative", "positive"])
    assert (info["max_inputs"], info["max_bytes"]) == (8, MAX_BYTES)


@pytest.mark.slow
def test_500_malformed_requests_are_refused_and_good_ones_go_on(classifier: tuple[Path, ModelServer]) -> None:
    model, server = classifier
    good = json.dumps({"texts": TEXTS[:1]}).encode()
    expected = load(model).classify(TEXTS[:1])
    rng = random.Random(0)
    for number in range(500):
        method, path, body = malformed(rng)
        status, answer = ask(server, body, path, method)
        assert 400 <= status < 500, (method, path, body[:200], status, answer)
        if method != "HEAD":
            assert isinstance(answer["error"], str), (method, path, body[:200], answer)
            assert answer["error"]
        if number % 10 == 0:
            status, answer = ask(server, good)
            assert status == 200
            assert_equal(answer["predictions"], expected)


def malformed(rng: random.Random) -> tuple[str, str, bytes]:
    """Return method, path and body of a request that can't be answered."""
    if rng.random() < 0.1:
        return rng.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD"]), "/predict", b""
    if rng.random() < 0.1:
        return "POST", rng.choice(["/", "/predictions", "/predict/x", "/health", "/%00", "/../etc/passwd"]), b"{}"
    return "POST", "/predict", rng.choice(_BODIES)(rng)


def _wrong_value(rng: random.Random) -> Any:
    return rng.choice([None, True, rng.random(), rng.randrange(10**9), {}, {"a": [1]}, [["x"]], float("nan"), -1e308])


_BODIES: list[Callable[[random.Random], bytes]] = [
    lambda rng: rng.randbytes(rng.randrange(200)),
    lambda rng: json.dumps({"texts": ["a film"] * 3}).encode()[: rng.randrange(25)],
    lambda rng: json.dumps({"texts": _wrong_value(rng)}).encode(),
    lambda rng: json.dumps({"texts": ["a", _wrong_value(rng)]}).encode(),
    lambda rng: json.dumps({"texts": ["a"], f"x{rng.randrange(100)}": _wrong_value(rng)}).encode(),
    lambda rng: json.dumps({"texts": ["a"] * rng.randrange(9, 100)}).encode(),
    lambda rng: json.dumps({"texts": ["x" * rng.randrange(MAX_BYTES, 4 * MAX_BYTES)]}).encode(),
    lambda rng: json.dumps({"images": ["AAAA"]}).encode(),
    lambda rng: b'{"texts": ' + b"[" * rng.randrange(300, 9000),
    lambda rng: rng.choice([b"[]", b"{}", b"null", b"NaN", b'""', b'{"texts": []}', b'{"texts": ["\\ud800"]}']),
]


@pytest.mark.slow
def test_a_body_of_10_mb_is_refused_without_being_read(classifier: tuple[Path, ModelServer]) -> None:
    _, server = classifier
    host, port = urlsplit(server.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"[" * 1000)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 413
        assert f"larger than {MAX_BYTES} bytes".encode() in answer.read()


@pytest.mark.slow
def test_images_are_answered_and_sigterm_ends_the_server(tmp_path: Path) -> None:
    model = save(IMAGE, tmp_path / "model")
    with own_server(str(model), tmp_path / "log.txt") as server:
        pictures = [png(0), png(90)]
        pixels = [read_picture(content, IMAGE_SHAPE) for content in pictures]
        images: list[Any] = [base64.b64encode(pictures[0]).decode(), pixels[1].tolist()]
        status, answer = ask(server, json.dumps({"images": images}).encode())
        assert status == 200
        config: Any = CONFIGS[IMAGE]
        assert_equal(answer["predictions"], load(model).classify(model_inputs(pixels, config)))
        assert ask(server, b'{"images": ["AAAA"]}')[0] == 422
        assert_stops(server)


def assert_stops(server: ModelServer) -> None:
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert time.monotonic() - begin < 30
    assert server.log.read_text().splitlines()[-1] == "stopped"


@pytest.mark.slow
def test_a_cluster_serves_one_model_at_a_time_and_is_left_as_it_was(tmp_path: Path) -> None:
    mlm, classifier = save(MLM, tmp_path / "mlm"), save(TEXT, tmp_path / "classifier")
    with ray_head() as head:
        environment = {**head.environment, "RAY_ADDRESS": head.address}
        with own_server(str(mlm), tmp_path / "log.txt", environment=environment) as server:
            command = [sys.executable, "-m", "pipelines", "serve", f"--model={classifier}", f"--port={free_port()}"]
            second = subprocess.run(
                command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
            )
            assert second.returncode == 2
            assert second.stderr.splitlines()[-1].startswith("error: the cluster at RAY_ADDRESS runs Ray Serve already")
            assert_fills(server, mlm)
            assert_stops(server)
        with own_server(str(classifier), tmp_path / "log.txt", environment=environment) as server:
            status, answer = ask(server, json.dumps({"texts": TEXTS}).encode())
            assert status == 200
            assert_equal(answer["predictions"], load(classifier).classify(TEXTS))


def assert_fills(server: ModelServer, model: Path) -> None:
    status, answer = ask(server, b'{"texts": ["i have [MASK] this [MASK]"], "top_k": 3}')
    assert status == 200
    found = load(model).fill(["i have [MASK] this [MASK]"], 3)[0]["fills"]
    fills = answer["predictions"][0]["fills"]
    assert [[fill["token"] for fill in mask] for mask in fills] == [[t for t, _ in mask] for mask in found]
    for mask, expected in zip(fills, found, strict=True):
        assert [fill["probability"] for fill in mask] == pytest.approx([p for _, p in expected], abs=1e-5)


@pytest.mark.slow
def test_the_champion_is_served_by_mlflow(tmp_path: Path) -> None:
    model, uri = save(TEXT, tmp_path / "model"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    add_candidate(uri, "reviews", model, Origin())
    promote(PromoteOptions("reviews", tracking_uri=uri))
    with mlflow_model_server(f"models:/reviews@{CHAMPION}", tmp_path / "log.txt", uri) as server:
        question = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in TEXTS]}}
        status, answer = ask(server, json.dumps(question).encode(), "/invocations")
        assert status == 200
        assert_equal(answer["predictions"], load(model).classify(TEXTS))
