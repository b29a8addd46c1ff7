"""Servers of tests compare no runtimes, which takes seconds for each version; what tests that, has it done."""

from collections.abc import Iterator

import pytest

MEASURE = "LABELROUNDS_MEASURE_RUNTIMES"


@pytest.fixture(scope="session", autouse=True)
def _no_runtimes_measured() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MEASURE, "false")
        yield
