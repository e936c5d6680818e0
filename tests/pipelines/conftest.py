"""What several tests of pipelines share."""

import pytest

from tests.pipelines.faults import Run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happens to."""
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    outcome = run.run()
    assert outcome.status == 0, outcome.said
    return run
