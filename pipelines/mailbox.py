"""How the driver and the workers of a Ray training talk: through an actor that holds what either has to say."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.control import Report, Wish

POLL_SECONDS = 0.5
_DRAIN_POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 120.0  # a worker takes half a minute to start, a machine some minutes
_LONGEST_REASON = 300


class Mailbox:
    """Holds what the workers report until the driver takes it, and what the driver wishes until they do.

    Attributes:
        wish: What the driver wishes.
        reasons: Why attempts ended, in order.
        nodes: The nodes of the present attempt's workers, by rank.
    """

    def __init__(self) -> None:
        self.wish = Wish.NOTHING
        self.reasons: list[str] = []
        self.nodes: dict[int, str] = {}
        self._states: list[dict[str, Any]] = []

    def join(self, rank: int, node: str) -> tuple[str, ...]:
        """Take note of a worker that begins, and return why earlier attempts ended."""
        self.nodes[rank] = node
        return tuple(self.reasons)

    def fail(self, reason: str) -> None:
        """Take note of why an attempt ended."""
        self.reasons.append(reason)
        self.nodes.clear()
        self._states.append({"note": f"workers failed ({reason})", "phase": "restarting"})

    def put(self, state: dict[str, Any]) -> None:
        """Take a state of the training."""
        self._states.append(state)

    def take(self) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """Return the states since the last time, and the nodes of the workers."""
        states, self._states = self._states, []
        return states, dict(self.nodes)

    def set_wish(self, wish: Wish) -> None:
        """Wish for something."""
        self.wish = wish

    def get_wish(self) -> Wish:
        """Return what is wished."""
        return self.wish


class Failures(UserCallback):
    """Tells the mailbox, from Ray's controller, why workers failed.

    Args:
        mailbox: Handle of the mailbox.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See ray.train.UserCallback."""
        ray.get(self._mailbox.fail.remote(first_failure(worker_exceptions)))


_REASONS = (  # what Ray and torch say, at length, and what we say
    (r"its node has died|node .* (died|was terminated|preempted)", "its node died"),
    (r"worker process has died|unexpectedly exits|ActorDiedError|actor (is|was) (dead|killed)", "its process died"),
    (r"health check.*(hanging|timed? ?out|timeout)|WorkerHealthCheckTimeout", "its process did not answer"),
    (r"Timed out waiting|Watchdog caught collective|wait timeout", "waited too long for another worker"),
    (r"Connection (closed|reset) by peer|Broken pipe|NCCL .*remote process exited", "lost another worker"),
)
_CONSEQUENCES = ("waited too long for another worker", "lost another worker")


def first_failure(errors: Mapping[int, BaseException]) -> str:
    """Say which of some workers failed first, and why, in a few words.

    Args:
        errors: The error of each by its rank.
    """
    reasons = {rank: failure_reason(error) for rank, error in errors.items()}
    rank = min(reasons, key=lambda rank: (_is_consequence(reasons[rank]), rank))
    return f"worker {rank}: {reasons[rank]}"


def failure_reason(error: BaseException) -> str:
    """Say in a few words why a worker failed."""
    text = f"{type(error).__name__}: {error}"
    for pattern, reason in _REASONS:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return reason
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST_REASON]  # where Python says what it is


def _is_consequence(reason: str) -> bool:
    """Tell whether a worker failed only because another one did not answer any more."""
    return reason in _CONSEQUENCES


class WishReader:
    """Asks the mailbox now and then what the driver wishes, from a thread, so that no step waits for the answer.

    Args:
        mailbox: Handle of the mailbox.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._wish = Wish.NOTHING
        threading.Thread(target=self._poll, name="wishes", daemon=True).start()

    def __call__(self) -> Wish:
        """Return what was wished when the mailbox was last asked."""
        return self._wish

    def _poll(self) -> None:
        while True:
            try:
                self._wish = ray.get(self._mailbox.get_wish.remote())
            except ray.exceptions.RayError:  # the driver is gone, and this worker soon will be
                return
            time.sleep(POLL_SECONDS)


class Relay:
    """Passes what the workers report on to the driver, and what the driver wishes on to them, from a thread.

    Args:
        report: Called with each state.
        wanted: What the workers need, for a message if they don't come.
    """

    def __init__(self, report: Report, wanted: str) -> None:
        # On the node of the driver: one that needs no cores may else be put on a node that is then taken away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
        self.phase = ""
        self._report = report
        self._wanted = wanted
        self._waiting_since: float | None = time.monotonic()
        self._drains = _Drains()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="relay", daemon=True)

    def ask(self, wish: Wish) -> None:
        """Tell the workers what is wished."""
        self.mailbox.set_wish.remote(wish)

    def _work(self) -> None:
        while True:
            is_last = self._stopped.wait(POLL_SECONDS)
            try:
                states, nodes = ray.get(self.mailbox.take.remote())
            except ray.exceptions.RayError:
                return
            for state in states:
                self.phase = state.get("phase", self.phase)
                self._report(state)
            if is_last:
                return
            self._complain_of_missing(nodes)
            if self._drains.has_new(set(nodes.values())):
                self._report({"note": "a node will be taken away: its workers take a checkpoint"})
                self.ask(Wish.CHECKPOINT)

    def _complain_of_missing(self, nodes: dict[int, str]) -> None:
        """Say once, each time that there are no workers for long, what they wait for."""
        if nodes:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > _PATIENCE_SECONDS:
            self._waiting_since = float("inf")
            total = {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
            has = ", ".join(f"{amount:g} {name}" for name, amount in total.items())
            self._report({"note": f"waits for {self._wanted}; the cluster has {has}"})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Relay; at the end pass on the rest and take the mailbox away."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._thread.join()
            ray.kill(self.mailbox)


class _Drains:
    """Looks now and then whether nodes are about to be taken away, as spot instances are after a notice."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._looked = 0.0

    def has_new(self, nodes: set[str]) -> bool:
        if time.monotonic() - self._looked < _DRAIN_POLL_SECONDS:
            return False
        self._looked = time.monotonic()
        # ray.train.get_preemption_info, the public way, is a barrier of all workers in every step.
        draining = set(ray._private.state.state.get_draining_nodes()) & nodes
        new = draining - self._known
        self._known |= draining
        return bool(new)
