"""Threads wait briefly, unless the user has said how they are to wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perceiver.openmp import SPINS, spin_briefly


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_the_user_set_is_kept(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, variables.get(name, ""))
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == (expected or "")


def test_it_comes_before_torch() -> None:
    code = "import sys, perceiver.openmp, pipelines.__main__, tune.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jobs_wait_as_briefly() -> None:
    content = yaml.safe_load((Path(__file__).parents[2] / "runtime-env.yaml").read_text())
    assert content["env_vars"]["GOMP_SPINCOUNT"] == SPINS
