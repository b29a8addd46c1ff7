"""`GET /rounds/` gives clients what `labelrounds rounds` shows."""

import json

import requests

from labelrounds.client import Client


def see(server: Client, **query) -> requests.Response:
    return requests.get(f"{server.address}/rounds/", params=query, timeout=120)


def test_the_state_of_the_rounds_is_json_without_nan(server):
    answer = see(server, count=2, thumbnails=True, strategy="random")
    state = json.loads(answer.text, parse_constant=lambda constant: no_json(constant))
    assert [each["rank"] for each in state["queue"]] == [1, 2]
    assert all(each["reason"] for each in state["queue"])
    assert all(each["thumbnail"].startswith("data:image/png;base64,") for each in state["queue"])
    assert {"curve", "stop", "map", "suspects", "duplicates", "agreement", "scoring", "warnings"} <= state.keys()
    assert [reason["holds"] for reason in state["stop"]["reasons"]] == [None, None, None]


def no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_pictures_are_read_only_where_they_are_asked_for(server):
    assert {each["thumbnail"] for each in see(server, count=3).json()["queue"]} <= {None}


def test_wrong_queries_are_refused(server):
    assert see(server, strategy="best").status_code == 404
    assert see(server, model="unet_nothing").status_code == 404
    assert see(server, target=2).status_code in (400, 422)
    assert see(server, count=-1).status_code in (400, 422)
