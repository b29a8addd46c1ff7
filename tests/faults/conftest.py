"""One server for the faults that leave it as it is; after each test it is checked as ``tests/README.md`` says."""

from collections.abc import Iterator

import pytest

from tests.faults.trusted import TrustedServer, trusted


@pytest.fixture(scope="session")
def _session_server(tmp_path_factory) -> Iterator[TrustedServer]:
    with trusted(tmp_path_factory.mktemp("trusted")) as server:
        yield server


@pytest.fixture
def trusted_server(_session_server) -> Iterator[TrustedServer]:
    """Lend the server to a test; then a good request must succeed, and nothing have changed outside its folders."""
    yield _session_server
    _session_server.check()
