"""Whatever is in a header, the answer is the image that another library finds, or a 4xx with a reason."""

from collections.abc import Iterator

import pytest

from labelrounds.sandbox import Sandbox
from labelrounds.settings import ServerSettings
from tests.fuzz.files import ENDINGS
from tests.fuzz.headers import fuzz


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(ServerSettings())
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_mutated_header_gives_the_right_image_or_a_reason(sandbox: Sandbox, ending: str, count: int):
    """Reliability 1."""
    outcomes = fuzz(sandbox, ending, count)
    assert outcomes["read"] + sum(outcomes[status] for status in ("400", "413", "415")) == count
    assert outcomes["compared"] > count / 10 and outcomes["400"] > count / 10
