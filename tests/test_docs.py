"""The fault table names tests that exist."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_the_fault_table_names_tests_that_exist() -> None:
    page = (REPOSITORY / "docs" / "faults.md").read_text()
    file = ""
    named = re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", page)
    named = [(name, function) for name, function in named if name or function]
    assert len(named) > 40
    for name, function in named:
        file = name or file
        text = (REPOSITORY / "tests" / "pipelines" / file).read_text()
        assert not function or f"def {function}(" in text, f"{file}::{function}"
