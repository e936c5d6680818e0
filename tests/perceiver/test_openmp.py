"""Threads wait briefly, unless the user has said how they are to wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from perceiver.openmp import spin_briefly


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "3000"),
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
