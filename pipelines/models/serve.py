"""`python -m pipelines serve`: a trained model behind HTTP, on Ray Serve."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig
from perceiver.errors import UserError
from perceiver.files import MANIFEST, read_manifest
from perceiver.saving import read_config
from pipelines.cluster import connected, own_resources
from pipelines.mlflow_client import without_secrets
from pipelines.models.serve_options import ServeOptions
from pipelines.models.where import model_folder

_APPLICATION = "perceiver"
_CONTROLLER = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}  # of Ray Serve, wherever it runs
_STOP_SECONDS = 2.0
_BATCHES_AT_ONCE = 4  # one is computed, one waits, and there is room for requests that are read and answered


@dataclass(frozen=True)
class _Share:
    """What one replica has."""

    device: str
    cpus: int

    def options(self) -> dict[str, float]:
        return {"num_cpus": self.cpus, "num_gpus": float(self.device == "cuda")}


def serve(options: ServeOptions) -> int:
    """Serve a model until Ctrl-C or SIGTERM, and return the exit status.

    Raises:
        UserError: If the model, the address or the resources can't be had, found before Ray starts; or if the cluster
            that RAY_ADDRESS names serves something already.
    """
    own = own_resources()
    if own is not None:  # otherwise the head listens, which may be another machine
        _check_address(options.host, options.port)
    share = None if own is None else _share(options, own)
    with model_folder(options.model, options.tracking_uri) as folder:
        config = read_config(folder)
        files = {name: (folder / name).read_bytes() for name in [*read_manifest(folder)["files"], MANIFEST]}
    if not _is_loopback(options.host):
        print(f"warning: whoever reaches {options.host} may ask, for there is no authentication", file=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with connected():
            if share is None:
                share = _share(options, _cluster_resources())
            with contextlib.nullcontext() if own is not None else _only_server():
                _start(options, files, share)
                print(_welcome(options, config, "this machine" if own is not None else "the head"), flush=True)
                threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


def _cluster_resources() -> Mapping[str, float]:
    import ray

    found: Mapping[str, float] = ray.cluster_resources()
    return found


def _start(options: ServeOptions, files: Mapping[str, bytes], share: _Share) -> None:
    """Start the application, and wait until it answers.

    Raises:
        UserError: If the head can't listen at the address.
    """
    import ray
    from ray import serve

    from pipelines.models.service import Limits, Service

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    limits = Limits(options.max_batch_size, options.max_inputs, options.max_bytes)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": options.host, "port": options.port})
    except Exception as error:
        if "Failed to bind" not in str(error):
            raise
        raise _cannot_listen(options.host, options.port, "the head's port is taken") from None
    deployment = Service.options(  # type: ignore[attr-defined]  # the decorator makes a deployment of the class
        num_replicas=options.num_replicas,
        ray_actor_options=share.options(),
        max_ongoing_requests=max(_BATCHES_AT_ONCE * options.max_batch_size, 64),
        graceful_shutdown_timeout_s=_STOP_SECONDS,
        max_constructor_retry_count=1,
    )
    name = without_secrets(options.model)
    application = deployment.bind(ray.put(dict(files)), name, limits, share.device, share.cpus)
    serve.run(application, name=_APPLICATION, route_prefix="/")


@contextmanager
def _only_server() -> Iterator[None]:
    """Be the one who starts Ray Serve on a cluster that goes on, and take it away at the end.

    Its address can't be changed while it runs, and a second model would take the place of the first.

    Raises:
        UserError: If Ray Serve runs there already.
    """
    import ray
    from ray import serve

    if _CONTROLLER in ray.util.list_named_actors(all_namespaces=True):
        serving = ", ".join(serve.status().applications) or "nothing at present"
        raise UserError(
            f"the cluster at RAY_ADDRESS runs Ray Serve already (it serves {serving}): stop that with `serve shutdown "
            "--address http://HEAD:8265`, or unset RAY_ADDRESS"
        )
    try:
        yield
    finally:
        serve.shutdown()


def _share(options: ServeOptions, total: Mapping[str, float]) -> _Share:
    """Return what each replica has of a cluster.

    Raises:
        UserError: If there is not enough for all of them.
    """
    cores, gpus, replicas = int(total.get("CPU", 1)), int(total.get("GPU", 0)), options.num_replicas
    device = options.device if options.device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and gpus < replicas:
        raise UserError(f"num_replicas is {replicas} with device cuda, but there are {gpus} GPUs: set --device cpu")
    if replicas > cores:
        raise UserError(f"num_replicas is {replicas}, but there are {cores} cores: ask for fewer")
    return _Share(device, cores // replicas)


def _check_address(host: str, port: int) -> None:
    """Raise a UserError unless this machine can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            probe.bind(address)
            probe.listen()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _cannot_listen(host, port, reason) from None


def _cannot_listen(host: str, port: int, reason: str) -> UserError:
    return UserError(f"can't listen at host {host}, port {port} ({reason}): choose another --host or --port")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _welcome(options: ServeOptions, config: ModelConfig, listener: str) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{options.port}"
    if isinstance(config, ImageClassifierConfig):
        data = '"{\\"images\\": [\\"$(base64 -w0 PICTURE.png)\\"]}"'
    else:
        text = "i have watched this [MASK]" if isinstance(config, MaskedLanguageModelConfig) else "what a film"
        data = shlex.quote(f'{{"texts": ["{text}"]}}')
    name = without_secrets(options.model)
    return f"{name} answers at {url} on {listener}, Ctrl-C ends it; try\n  curl {url}/predict -d {data}"
