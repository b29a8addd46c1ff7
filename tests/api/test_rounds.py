"""A round over HTTP: asked for, kept, put aside, labelled, and found in the ledger."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import requests

from labelrounds.client import Client
from labelrounds.phantoms import LABELS, write_studies, write_truth
from tests import waiting
from tests.api.conftest import MODEL
from tests.forked import running_server

COUNT = 24
wait_for = partial(waiting.wait_until, timeout_s=120)


@pytest.fixture(scope="module")
def truths(tmp_path_factory) -> dict[str, Path]:
    """The phantoms' labels, by image id."""
    return {path.name.removesuffix(".nii.gz"): path for path in write_truth(tmp_path_factory.mktemp("truth"), COUNT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Client]:
    write_studies(folder / "studies", COUNT)
    with running_server(folder / "studies", folder / "home", 0, [MODEL]) as client:
        yield client


def ask(server: Client, method: str, route: str, **options) -> requests.Response:
    return requests.request(method, server.address + route, timeout=120, **options)


def next_case(server: Client, client: str, strategy: str = "random") -> requests.Response:
    return ask(server, "POST", f"/activelearning/{strategy}", json={"client_id": client})


def submit(server: Client, image: str, label: Path, client: str) -> None:
    info = {"label_info": [{"name": name} for name in LABELS], "client_id": client}
    files = {"label": (label.name, label.read_bytes())}
    ask(
        server, "PUT", f"/datastore/label?image={image}", files=files, data={"params": json.dumps(info)}
    ).raise_for_status()


def state(server: Client) -> dict:
    return ask(server, "GET", "/rounds/").json()


def events(server: Client, event: str) -> list[dict]:
    return [row for row in state(server)["ledger"] if row["event"] == event]


def give_back(server: Client, image: str, client: str) -> None:
    """Have nobody hold a case any more."""
    body = {"image": image, "kind": "skip", "client_id": client}
    ask(server, "POST", "/rounds/aside", json=body).raise_for_status()
    ask(server, "DELETE", f"/rounds/aside?image={image}").raise_for_status()


def test_slicers_list_of_strategies_begins_with_the_default_one(server):
    listed = ask(server, "GET", "/info/").json()["strategies"]
    assert next(iter(listed)) == "auto"
    assert {"random", "margin", "typiclust", "epistemic"} <= set(listed)
    assert all(one["description"] for one in listed.values())


def test_20_clients_that_ask_at_once_get_20_cases(server):
    start = threading.Barrier(20)

    def race(number: int) -> str:
        start.wait()
        return next_case(server, f"racer {number}", ("random", "auto", "typiclust")[number % 3]).json()["id"]

    with ThreadPoolExecutor(20) as clients:
        handed = list(clients.map(race, range(20)))
    assert len(set(handed)) == 20
    for number, image in enumerate(handed):
        give_back(server, image, f"racer {number}")
    assert not state(server)["leases"]


def test_the_pool_is_scored_in_the_background_and_auto_goes_by_it(server):
    done = wait_for(lambda: (now := state(server)["scoring"])["scored"] == now["of"] == COUNT and now, timeout_s=300)
    assert done["failed"] == 0 and done["running"] is False
    chosen = next_case(server, "scored", "margin").json()
    assert 0 < chosen["score"] <= 1 and chosen["rank"] == 1 and chosen["reason"]
    queue = [one["score"] for one in ask(server, "GET", "/rounds/?strategy=margin&count=5").json()["queue"]]
    assert queue == sorted(queue, reverse=True) and queue[0] <= chosen["score"]


def test_the_next_cases_are_segmented_ahead(server):
    first = next_case(server, "ahead").json()["id"]

    def ready() -> list[bool]:
        return [one["ready"] for one in ask(server, "GET", "/rounds/?strategy=random&count=3").json()["queue"]]

    wait_for(lambda: ready() == [True] * 3)
    second = next_case(server, "ahead").json()
    assert second["prediction_ready"] is True
    for image in (first, second["id"]):
        give_back(server, image, "ahead")


def test_a_case_is_kept_by_who_has_it_alone(server):
    image = next_case(server, "keeper").json()["id"]
    assert ask(server, "POST", "/rounds/lease", json={"image": image, "client_id": "keeper"}).json()["lease_s"] == 3600
    other = ask(server, "POST", "/rounds/lease", json={"image": image, "client_id": "thief"})
    assert other.status_code == 409 and "another client has it" in other.json()["detail"]
    assert ask(server, "POST", "/rounds/lease", json={"image": "nope"}).status_code == 404


def test_who_sends_no_name_and_who_sends_null_is_the_same_client(server):
    image = ask(server, "POST", "/activelearning/random", json={"client_id": None}).json()["id"]
    assert ask(server, "POST", "/rounds/lease", json={"image": image}).status_code == 200
    give_back(server, image, "")


def test_a_review_is_checked_and_needs_a_label(server):
    body = {"image": "phantom_000", "verdict": "approved"}
    assert ask(server, "POST", "/rounds/review", json={**body, "image": "nobody"}).status_code == 404
    assert ask(server, "POST", "/rounds/review", json=body).status_code == 404
    assert ask(server, "POST", "/rounds/review", json={**body, "verdict": "good"}).status_code == 400


def test_a_case_that_is_put_aside_is_seen_with_its_reason_and_comes_back(server):
    image = next_case(server, "aside").json()["id"]
    body = {"image": image, "kind": "defer", "reason": "ask a colleague", "hours": 2, "client_id": "aside"}
    assert ask(server, "POST", "/rounds/aside", json=body).ok
    (found,) = [one for one in state(server)["aside"] if one["image"] == image]
    assert found["reason"] == "ask a colleague" and 7100 < found["left_s"] <= 7200
    assert ask(server, "DELETE", f"/rounds/aside?image={image}").ok
    assert ask(server, "DELETE", f"/rounds/aside?image={image}").status_code == 404


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("/activelearning/random", {"luck": 1}, "'luck' is not one of client_id, model"),
        ("/activelearning/random", {"model": 7}, "model: "),
        ("/activelearning/random", {"client_id": "x" * 10_000}, "client_id: "),
        ("/activelearning/random", {"model": "giant"}, "'giant' is not one of unet_phantom"),
        ("/activelearning/nope", {}, "'nope' is not one of auto"),
        ("/rounds/lease", {}, "image: field required"),
        ("/rounds/lease", {"image": ["a"]}, "image: "),
        ("/rounds/lease", {"image": "../../etc/passwd"}, "image id"),
        ("/rounds/aside", {"image": "phantom_000"}, "kind: field required"),
        ("/rounds/aside", {"image": "phantom_000", "kind": "burn"}, "kind: "),
        ("/rounds/aside", {"image": "phantom_000", "kind": "defer"}, "hours: "),
        ("/rounds/aside", {"image": "phantom_000", "kind": "skip", "hours": 3}, "hours: "),
        ("/rounds/aside", {"image": "phantom_000", "kind": "defer", "hours": -1}, "hours: "),
        ("/rounds/aside", {"image": "phantom_000", "kind": "defer", "hours": True}, "hours: "),
        ("/rounds/aside", {"image": "phantom_000", "kind": "skip", "reason": "x" * 1000}, "reason: "),
        ("/rounds/aside", {"image": "phantom_000", "kind": "skip", "why": ""}, "'why' is not one of"),
        ("/rounds/aside", {"image": "nope", "kind": "skip"}, "'nope' is not in the datastore"),
    ],
)
def test_a_wrong_body_is_refused_in_a_sentence_and_changes_nothing(server, route, body, words):
    before = state(server)
    answer = ask(server, "POST", route, json=body)
    assert 400 <= answer.status_code < 500 and words in answer.json()["detail"], answer.text
    after = state(server)
    assert after["ledger"] == before["ledger"] and after["cases"] == before["cases"]


@pytest.mark.parametrize("body", ["NaN", "[1]", "{", '{"image": "phantom_000", "kind": "defer", "hours": NaN}'])
def test_what_is_no_json_object_is_refused(server, body):
    for route in ("/rounds/aside", "/rounds/lease", "/activelearning/random"):
        answer = ask(server, "POST", route, data=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text


def test_a_round_is_in_the_ledger_with_time_spent_and_dice(server, truths):
    chosen = next_case(server, "ann", "auto").json()
    submit(server, chosen["id"], truths[chosen["id"]], "ann")
    (entry,) = [row for row in events(server, "submitted") if row["image"] == chosen["id"]]
    assert entry["strategy"] == "auto" and entry["reason"] == chosen["reason"] and 0 <= entry["seconds"] < 120
    found = wait_for(lambda: [row for row in events(server, "agreement") if row["image"] == chosen["id"]])
    assert 0.3 < found[0]["dice"] <= 1 and found[0]["details"]["submission"] == entry["id"]
    assert set(found[0]["details"]["per_label"]) <= set(LABELS) and found[0]["label"] == entry["label"]


def test_a_label_by_somebody_without_the_case_counts_too(server, truths):
    image = state(server)["queue"][0]["id"]
    submit(server, image, truths[image], "passer-by")
    (entry,) = [row for row in events(server, "submitted") if row["image"] == image]
    assert entry["seconds"] is None and entry["client"].endswith("passer-by")
    assert wait_for(lambda: [row for row in events(server, "agreement") if row["image"] == image])


def test_when_everything_is_labelled_the_answer_is_empty_and_a_header_says_why(server, truths):
    """Reliability 29."""
    for image, label in truths.items():
        submit(server, image, label, "ann")
    answer = next_case(server, "ann", "auto")
    assert answer.json() == {}
    assert answer.headers["X-LabelRounds-Message"] == f"Every case has a label: {COUNT} of {COUNT}."
    for image in truths:
        ask(server, "DELETE", f"/datastore/label?id={image}&tag=final")


def test_where_the_rounds_can_not_be_written_only_they_are_refused(tmp_path, truths):
    write_studies(tmp_path / "studies", 2)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rounds").write_text("a file where the folder should be")
    with running_server(tmp_path / "studies", tmp_path / "home", 0, [MODEL]) as client:
        answer = next_case(client, "ann")
        assert answer.status_code == 507 and "must be writable" in answer.json()["detail"]
        assert ask(client, "GET", "/rounds/").status_code == 507
        submit(client, "phantom_000", truths["phantom_000"], "ann")
        assert ask(client, "GET", "/info/").json()["datastore"]["completed"] == 1
        assert ask(client, "POST", f"/infer/{MODEL}?image=phantom_001&output=json").ok
        (tmp_path / "home" / "rounds").unlink()
        assert next_case(client, "ann").json()["id"] == "phantom_001"


def test_a_restarted_server_knows_who_has_what(tmp_path):
    write_studies(tmp_path / "studies", 2)
    with running_server(tmp_path / "studies", tmp_path / "home", 0, [MODEL]) as client:
        first = next_case(client, "ann").json()["id"]
    with running_server(tmp_path / "studies", tmp_path / "home", 0, [MODEL]) as client:
        assert [lease["image"] for lease in state(client)["leases"]] == [first]
        assert next_case(client, "bob").json()["id"] != first
        assert next_case(client, "carl").json() == {}
