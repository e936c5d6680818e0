"""How long the threads of torch's operations wait for each other before they give their cores up."""

from __future__ import annotations

import os

SPINS = "3000"
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Let threads of OpenMP wait only briefly before they sleep; call it before torch is loaded.

    Left alone, GNU's OpenMP waits long if there are no more threads than cores. Once another program wants a core too,
    each operation then takes as long as the system lets that one run: steps of the quickstart took 100 times as long
    beside a second training, and take 4 times as long with this. Without the other program they take a tenth longer.
    Whoever has set one of OpenMP's own variables keeps it.
    """
    if not any(os.environ.get(name) for name in _VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
