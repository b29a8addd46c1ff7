"""What a round chooses from is all that may be handed out, and what is known of it, from what lies on the disk."""

from labelrounds.checkpoints import Checkpoints
from labelrounds.json_files import write_json
from labelrounds.splits import TEST, TRAIN, position
from labelrounds.strategies import strategies


def test_the_same_state_gives_the_same_order(playground):
    """Reliability 29."""
    names = [f"case_{number}" for number in range(8)]
    orders = []
    for _ in range(2):
        playground.open(*names)
        pool = playground.source.gather()
        orders.append([choice.image_id for choice in strategies.get("random")().order(pool.pool, 8)])
        assert sorted(orders[-1]) == names
    assert orders[0] == orders[1]


def test_a_patient_whom_the_model_is_tested_on_comes_last_and_is_never_scored(playground):
    playground.open("a", "b", "c")
    file = Checkpoints(playground.config).folder / "split.json"
    write_json(file, {"a": TEST, "b": TRAIN})
    source = playground.source
    assert sorted(source.to_score()) == ["b", "c"]
    assert source.gather().pool.candidates == ["b", "c"]
    assert sorted([playground.ask(), playground.ask()]) == ["b", "c"]
    chosen, _ = playground.rounds.choose({"client_id": "ann", "strategy": "random"})
    assert chosen["id"] == "a" and "the model is measured" in chosen["reason"]


def test_from_40_labelled_patients_on_a_name_decides_who_is_held_back(playground):
    names = [f"case_{number:02d}" for number in range(60)]
    playground.open(*names)
    for name in names[:39]:
        playground.label(name)
    gathered = playground.source.gather()
    assert list(gathered.pool.candidates) == [name for name in names[39:] if position(name) < 0.6]
    assert list(gathered.held_back) == [name for name in names[39:] if position(name) >= 0.6] != []


def test_labelled_cases_are_in_the_order_of_labelling_with_their_classes(playground):
    playground.open("a", "b", "c")
    for name in ("b", "a"):
        playground.label(name)
    pool = playground.source.gather().pool
    assert list(pool.labelled) == ["b", "a"]
    assert pool.present == {"a": ["near", "far"], "b": ["near", "far"]} and pool.candidates == ["c"]


def test_a_second_reading_is_found_also_in_a_ledger_that_was_begun_anew(playground):
    playground.open("a", "b", "c")
    for name in ("a", "b"):
        playground.label(name)
    assert playground.ask("bob", "second_opinion") in ("a", "b")
    for file in (playground.folder / "home" / "rounds").glob("*.sqlite*"):
        file.unlink()
    playground.label("c")
    assert playground.source.gather("bob").pool.labelled_once == ["a", "b", "c"]
