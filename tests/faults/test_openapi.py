"""Requests that schemathesis makes from the server's own description of its routes, right ones and wrong ones."""

from collections import Counter
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis import GenerationMode

from labelrounds.phantoms import LABELS, write_truth
from tests.faults.trusted import MODEL, TrustedServer, eventually, trusted

ALLOWED_ERRORS = (503, 507)
IMAGE = "fuzzed"
_KNOWN = {"model": MODEL, "image": IMAGE, "label": IMAGE, "id": IMAGE, "tag": "final", "strategy": "auto"}


def with_known(case: schemathesis.Case, session: str) -> schemathesis.Case:
    """Put names that the server knows into a request, which else goes no further than to a name that it doesn't."""
    for values in (case.path_parameters, case.query):
        known = {**_KNOWN, "session_id": session}
        values.update({name: known[name] for name in values if name in known})
    if isinstance(case.body, dict):
        case.body.update({name: "{}" for name in ("params", "info") if name in case.body})
    return case


def keep_image(server: TrustedServer) -> str:
    """Upload the image that the requests are about, unless it is there; return a session with it."""
    image = server.studies / "phantom_000.nii.gz"
    if not server.ask("HEAD", f"/datastore/image?image={IMAGE}").ok:
        server.call("PUT", f"/datastore/image?image={IMAGE}", files={"file": (image.name, image.read_bytes())})
    kept = server.call("PUT", "/session/", files={"files": (image.name, image.read_bytes())}).json()
    return kept["session_id"]


def fuzz(server: TrustedServer, cases: int) -> tuple[Counter, list[str]]:
    """Send about ``cases`` requests, as many to each route; return how often each status came, and what was wrong."""
    schema = schemathesis.openapi.from_dict(server.call("GET", "/openapi.json").json())
    schema.config.update(base_url=server.address)
    operations = sorted((found.ok() for found in schema.get_all_operations()), key=lambda one: one.label)
    statuses, wrong = Counter(), []

    def send(case: schemathesis.Case) -> None:
        answer = server.send(case.call)
        statuses[answer.status_code] += 1
        if answer.status_code >= 500 and answer.status_code not in ALLOWED_ERRORS:
            wrong.append(f"{answer.status_code} {case.as_curl_command()} {answer.text[:300]}")

    for number, operation in enumerate(operations):
        each = cases * (number + 1) // len(operations) - cases * number // len(operations)
        session = keep_image(server)
        for mode in GenerationMode:
            examples = each // 2 if mode.is_negative else each - each // 2
            if examples:
                send_cases(operation, mode, examples, number, session, send)
        server.ask("DELETE", f"/session/{session}")
    return statuses, wrong


def send_cases(operation, mode, examples, number, session, send) -> None:
    """Send requests to a route; right ones (``mode`` positive) or wrong ones, of which a route may have none."""

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), known=booleans())
    def send_one(case, known) -> None:
        send(with_known(case, session) if known else case)

    with suppress(Unsatisfiable):
        send_one()


def test_no_request_that_the_description_allows_or_forbids_is_an_error_of_the_server(trusted_server):
    """Reliability 26. Reduced: 150 requests, to a server without labels, so that no training begins."""
    statuses, wrong = fuzz(trusted_server, 150)
    print(sorted(statuses.items()))
    assert wrong == []
    assert statuses.total() >= 120 and statuses[200] >= 10
    trusted_server.call("DELETE", f"/datastore/image?id={IMAGE}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_is_an_error_of_a_server_that_could_train(tmp_path):
    """Reliability 26. In full: 2,000 requests and more, some of which begin and end trainings."""
    with trusted(tmp_path) as server:
        label = write_truth(tmp_path / "truth", 1)[0]
        server.submit("phantom_000", label, LABELS)
        statuses, wrong = fuzz(server, 2600)  # routes that take nothing have fewer distinct requests than their share
        print(sorted(statuses.items()))
        assert wrong == []
        assert statuses.total() >= 2000 and statuses[200] >= 200
        assert eventually(lambda: stopped(server), 120)
        assert "Traceback" not in server.take_log()
        server.call("POST", f"/infer/{MODEL}?image=phantom_000&output=image")


def stopped(server: TrustedServer) -> bool:
    """Stop what trains or waits to; tell whether nothing does."""
    if not server.ask("GET", "/train/?check_if_running=true").ok:
        return True
    server.ask("DELETE", "/train/")
    return False
