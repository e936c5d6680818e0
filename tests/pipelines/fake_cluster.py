"""A server that answers as the dashboard of a cluster does, and the mistakes that keep a job from being sent there."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray

NODE = {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}}
CPU_NODE = {"state": "ALIVE", "resources_total": {"CPU": 4.0}}


class Cluster(ThreadingHTTPServer):
    """Answers as a cluster's dashboard does, and keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.version: Any = {"ray_version": ray.__version__}
        self.nodes = [NODE, {**NODE, "state": "DEAD"}]
        self.asked: list[tuple[str, str, str | None]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:  # noqa: N802
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        nodes = {"data": {"result": {"result": self.server.nodes}}}
        answer = self.server.version if self.path == "/api/version" else nodes
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


LOST = "on the cluster would lie in the job's temporary folder and be lost: give "
SECRET = "holds a password or key, which config.yaml, MLflow and jobs would show: leave it out, and set it in the "
HERE: dict[str, tuple[str, dict[str, Any], str]] = {
    "option": ("mlm", {"trainer.epochs": 3}, "unknown option --trainer.epochs: did you mean --trainer.max_epochs?"),
    "own-option": ("mlm", {"adress": "x"}, "unknown option --adress: did you mean --address?"),
    "own-option-in-file": ("mlm", {"config": "with_own.yaml"}, "unknown option follow: "),
    "batch": ("mlm", {"trainer.batch_size": 5, "scaling.num_workers": 2}, "trainer.batch_size is 5, which 2 workers"),
    "name": ("mlm", {"run_name": "a/b"}, "run_name 'a/b' has a slash"),
    "name-of-a-job": ("mlm", {"run_name": "my run"}, "run_name 'my run' can't be a job's id: use letters, digits, '-'"),
    "storage-default": ("mlm", {"storage_path": "runs"}, f"storage_path is runs, which {LOST}a bucket"),
    "storage-relative": ("mlm", {"storage_path": "../runs"}, f"storage_path is ../runs, which {LOST}a bucket"),
    "database": ("mlm", {"tracking.uri": "sqlite:///m.db"}, f"tracking.uri is sqlite:///m.db, which {LOST}the address"),
    "config-outside": ("mlm", {"config": "../mine.yaml"},
                       "--config is ../mine.yaml, which lies outside {root}/project: move it there, or to a shared"),
    "config-absolute": ("mlm", {"config": "{root}/project/mine.yaml"},
                        "--config is {root}/project/mine.yaml, which may not be there: give a relative path in "),
    "config-excluded": ("mlm", {"config": "sub/mine.yaml"},
                        "--config is sub/mine.yaml, but sub/mine.yaml does not travel to the cluster: add it to those"),
    "data-excluded": ("mlm", {"data.path": "texts.csv"}, "data.path is texts.csv, but texts.csv does not travel to"),
    "data-outside": ("mlm", {"data.path": ".."}, "data.path is .., which lies outside {root}/project: move it there"),
    "data-missing": ("mlm", {"data.path": "none.csv"}, "none.csv does not exist: correct the path (relative ones"),
    "tokenizer": ("mlm", {"data.tokenizer": "texts.csv"}, "data.tokenizer is texts.csv, but texts.csv does not travel"),
    "model": ("text-classifier", {"init_from": "sub"}, "init_from is sub, but sub/mine.yaml does not travel to the "),
    "password": ("mlm", {"tracking.uri": "https://me:hidden@mlflow"}, "tracking.uri holds a password, which"),
    "key": ("mlm", {"storage_path": "s3://bucket/x?secret_key=hidden"}, f"storage_path {SECRET}"),
    "key-of-data": ("mlm", {"data.path": "s3://me:hidden@bucket/x"}, f"data.path {SECRET}"),
    "scheme": ("mlm", {"address": "ray://head:10001"}, "address is ray://head:10001, but has to be the dashboard's: "),
    "folder": ("mlm", {"working_dir": "sub"}, "working_dir sub holds no perceiver/: name the folder of the project"),
    "runtime-env": ("mlm", {"runtime_env": "none.yaml"}, "runtime_env none.yaml cannot be read (No such file or dir"),
}  # fmt: skip

THERE: dict[str, tuple[dict[str, Any], str]] = {
    "missing-token": ({"status": 401}, "asks for a token, and there is none: put the cluster's token into a file of "
                                       "mode 0600 and name that in RAY_AUTH_TOKEN_PATH"),
    "another-server": ({"status": 404}, "answers with HTTP status 404, which no Ray cluster does here: correct"),
    "redirection": ({"status": 302}, "answers with HTTP status 302, which no Ray cluster does here: correct the"),
    "page": ({"version": b"<html>"}, "is no dashboard of a Ray cluster: correct the address"),
    "other-json": ({"version": [1]}, "is no dashboard of a Ray cluster: correct the address"),
    "version": ({"version": {"ray_version": "2.9.0"}}, "runs Ray 2.9.0, but this is Ray 2."),
}  # fmt: skip
