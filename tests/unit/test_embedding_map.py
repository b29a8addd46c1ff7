"""The map is the same for the same embeddings, whatever their order, and shows what matters before the rest."""

import numpy as np
import pytest

from labelrounds.embedding_map import embedding_map


def embeddings(count: int, length: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"image_{index:04d}": rng.normal(size=length).astype(np.float32) for index in range(count)}


def test_distances_on_a_plane_are_kept():
    corners = {"a": (0, 0), "b": (4, 0), "c": (4, 1), "d": (0, 1)}
    found = embedding_map({name: np.array([x, y, 7.0], np.float32) for name, (x, y) in corners.items()}, {})
    places = {point["id"]: np.array([point["x"], point["y"]]) for point in found["points"]}
    assert np.linalg.norm(places["a"] - places["b"]) == pytest.approx(
        4 * np.linalg.norm(places["b"] - places["c"]), rel=1e-3
    )
    assert found["explained"] == pytest.approx([16 / 17, 1 / 17], abs=1e-4)


@pytest.mark.parametrize("count", [4, 40])  # fewer cases than components, and more
def test_the_order_of_the_cases_changes_nothing(count):
    known = embeddings(count)
    backwards = dict(reversed(known.items()))
    assert embedding_map(known, {}) == embedding_map(backwards, {})


def test_fewer_cases_than_numbers_lie_where_the_same_table_turned_round_puts_them():
    found = embedding_map(embeddings(4, 50), {})
    table = np.stack(list(embeddings(4, 50).values())).astype(float)
    left, sizes, _ = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    expected = np.abs(left[:, :2] * sizes[:2])
    places = np.abs([[point["x"], point["y"]] for point in found["points"]])
    assert places == pytest.approx(expected / expected.max(), abs=1e-3)


def test_a_crowd_is_sampled_and_keeps_what_is_labelled_queued_or_suspect():
    known = embeddings(300)
    kinds = {"image_0007": "queued", "image_0100": "suspect", "image_0200": "labelled", "image_0299": "taken"}
    found = embedding_map(known, kinds, most=10)
    assert (found["shown"], found["of"]) == (10, 300)
    assert {point["id"]: point["kind"] for point in found["points"] if point["kind"] != "unlabelled"} == kinds
    assert found == embedding_map(known, kinds, most=10)


@pytest.mark.parametrize("known", [{}, {"broken": np.full(3, np.nan, np.float32)}])
def test_nothing_known_is_an_empty_map(known):
    assert embedding_map(known, {})["points"] == []


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_cases_or_all_the_same_have_finite_places(count):
    for known in (embeddings(count), {f"image_{index}": np.ones(4, np.float32) for index in range(count)}):
        found = embedding_map(known, {})
        assert np.isfinite([[point["x"], point["y"]] for point in found["points"]]).all()
        assert np.isfinite(found["explained"]).all()
