"""The rounds keep who has what and what was said of it, over restarts, and refuse what is not there."""

import pytest
from tests.waiting import wait_until

from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import Conflict, NotFound, OutOfSpace
from labelrounds.leases import LEASE_S
from labelrounds.networks import build_network


def test_a_label_that_is_sent_back_is_handed_out_first_and_not_learnt_from_until_it_is_submitted_again(playground):
    rounds, store = playground.open("a", "b", "c"), playground.app.store
    playground.label("b")
    rounds.review("b", "sent_back", "the spleen is missing", "rita", "here rita")
    assert store.training_items() == [] and rounds.state(count=1)["queue"][0]["id"] == "b"
    chosen, _ = rounds.choose({"client_id": "bob", "strategy": "random"})
    assert (chosen["id"], chosen["reason"]) == ("b", "sent back by rita: the spleen is missing")
    assert chosen["review"]["verdict"] == "sent_back" and chosen["queue"] == 2
    assert playground.ask("ann") in ("a", "c")
    playground.label("b", "bob")  # as it was: a second one stands by it
    assert [case.image_id for case in store.training_items()] == ["b"]
    (label,) = rounds.state()["labels"]
    assert (label["image"], label["review"]) == ("b", {})
    assert ("sent_back", "b") in playground.events()


def test_an_approved_label_is_shown_with_who_said_so_and_needs_a_label(playground):
    rounds = playground.open("a", "b")
    playground.label("b")
    (seen,) = rounds.state()["labels"]
    with pytest.raises(Conflict, match="was replaced since it was looked at"):
        rounds.review("b", "approved", "", "rita", "here rita", "0" * 64)
    rounds.review("b", "approved", "", "rita", "here rita", seen["sha256"])
    (label,) = rounds.state()["labels"]
    assert (label["review"]["verdict"], label["review"]["by"]) == ("approved", "rita") and label["time"] > 0
    assert [case.image_id for case in playground.app.store.training_items()] == ["b"]
    assert playground.ask() == "a"
    with pytest.raises(NotFound, match="'a' has no label"):
        rounds.review("a", "approved", "", "rita", "here rita")


def test_a_case_is_kept_only_by_who_has_it(playground):
    playground.open("a")
    playground.ask("ann")
    assert playground.rounds.renew("a", "ann") == LEASE_S
    with pytest.raises(Conflict):
        playground.rounds.renew("a", "bob")
    with pytest.raises(NotFound, match="'nope' is not in the datastore"):
        playground.rounds.renew("nope", "ann")


@pytest.mark.parametrize("request_", [{"strategy": "luck"}, {"strategy": "random", "model": "giant"}], ids=str)
def test_an_unknown_strategy_or_model_is_refused_with_the_known_ones(playground, request_):
    playground.open("a")
    with pytest.raises(NotFound, match=r"is not one of .*(random|tiny)"):
        playground.rounds.choose(request_)


def test_where_nothing_can_be_written_asking_says_so_and_a_label_is_saved(playground, home):
    home.mkdir(parents=True, exist_ok=True)
    (home / "rounds").write_text("a file where the folder should be")
    playground.open("a", "b")
    with pytest.raises(OutOfSpace):
        playground.ask()
    playground.label("a")
    assert playground.app.store.get_labeled_images() == ["a"]
    (home / "rounds").unlink()
    assert playground.ask() == "b", "as soon as it can be written to again"


def test_a_restart_changes_nothing_about_who_has_what(playground):
    playground.open("a", "b")
    first = playground.ask("ann")
    playground.open("a", "b")
    assert playground.ask("bob") != first and playground.ask("bob") != first
    assert playground.ask("ann") == first


def test_the_state_tells_what_is_next_and_who_has_what(playground):
    playground.open("a", "b", "c", "d")
    in_hand = playground.ask()
    playground.rounds.put_aside(playground.ask("bob"), "bob", "defer", "later", 2.0)
    state = playground.rounds.state("random")
    assert state["cases"]["candidates"] == 2 and [one["rank"] for one in state["queue"]] == [1, 2]
    assert [lease["image"] for lease in state["leases"]] == [in_hand] and state["aside"][0]["reason"] == "later"
    assert [row["event"] for row in state["ledger"]] == ["handed_out", "handed_out", "deferred"]


def test_a_model_that_cases_are_asked_for_by_passes_over_them_beside_the_usual_one(playground):
    rounds = playground.open("a", "b", "c", "d")
    other, third = (playground.config.model_copy(update={"name": name}) for name in ("other", "third"))
    for config in (playground.config, other, third):
        playground.app.configs[config.name] = config
        Checkpoints(config).publish(build_network(config), {})

    def scored() -> dict[str, int]:
        rounds._look_once(rounds._about())
        return {name: told["scored"] for name, told in rounds.progress().items()}

    rounds.choose({"strategy": "margin", "model": "third"})
    rounds.choose({"strategy": "margin", "model": "other"})
    rounds.choose({"strategy": "margin"})
    wait_until(lambda: scored() == {"tiny": 4, "other": 4, "third": 0}, 60)
    chosen, _ = rounds.choose({"strategy": "margin", "model": "other"})
    assert chosen["score"] is not None and "no model has looked" not in chosen["reason"]
