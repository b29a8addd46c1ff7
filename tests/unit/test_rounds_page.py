"""The page of the rounds is one file that fetches nothing, and shows what users and files say as text."""

import base64
import io
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from labelrounds.budget import Pick, PoolMean, advise, as_json, budget_curve, monitor_curve
from labelrounds.checkpoints import Version
from labelrounds.embedding_map import embedding_map
from labelrounds.rounds_figures import DARK, draw_curve, draw_map, png
from labelrounds.rounds_page import page, write_rounds
from labelrounds.rounds_tables import round_tables

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m$x_$"
LISTS = ("leases", "aside", "unreadable", "ledger", "suspects", "duplicates", "warnings", "queue")
VOID = {"meta", "img", "source", "br", "link"}


def version(number: int, labels: int, mean: float, judged_by: str) -> Version:
    rng = np.random.default_rng(number)
    scores = {f"held_{index}": {"liver": float(mean + 0.03 * rng.standard_normal())} for index in range(6)}
    cases = {"train": {f"case_{index}": "" for index in range(labels)}}
    return Version("unet", number, Path("w"), {"scores": scores, "judged_by": judged_by, "cases": cases})


def state(image: str = "case_1", reason: str = "unlike any labelled case") -> dict[str, Any]:
    """Return a state in which everything has content."""
    versions = [version(1, 4, 0.6, "train"), version(2, 8, 0.7, "cross-validation"), version(3, 12, 0.8, "validation")]
    points = budget_curve([*versions, version(4, 16, 0.81, "validation")])
    picks = [Pick(number, 0.1 * number + 0.4) for number in (1, 2, 3, 3, 3, 4)]
    rng = np.random.default_rng(0)
    names = [image, *(f"other_{index}" for index in range(30))]
    embeddings = {name: rng.normal(size=6).astype(np.float32) for name in names}
    kinds = {image: "queued", "other_1": "labelled", "other_2": "suspect", "other_3": "taken"}
    said = {"image": image, "reason": reason, "client": reason}
    return {
        "time": 1.7e9,
        "model": "unet_liver",
        "task": "segmentation",
        "version": 4,
        "strategy": "auto",
        "cases": {"images": 31, "labelled": 4, "candidates": 20, "in_hand": 1, "put_aside": 1},
        "curve": {
            "measure": "Dice",
            "band": "95 % interval by bootstrap",
            "points": [as_json(point) for point in points],
            "monitor": monitor_curve(picks),
        },
        "stop": advise(points, [PoolMean(1, 0.3, 30)], picks),
        "queue": [
            {"id": image, "rank": 1, "reason": reason, "score": 0.7, "monitor": True, "ready": True, "thumbnail": None},
            {
                "id": "other_9",
                "rank": 2,
                "reason": "",
                "score": None,
                "monitor": False,
                "ready": False,
                "thumbnail": f"data:image/png;base64,{base64.b64encode(b'png').decode()}",
            },
        ],
        "leases": [{**said, "since": 1.7e9, "left_s": 60.0, "strategy": "auto"}],
        "aside": [{**said, "kind": "skip", "time": 1.7e9, "left_s": None}],
        "unreadable": [{"image": image, "reason": reason}],
        "ledger": [{**said, "time": 1.7e9, "event": "submitted", "dice": None}],
        "suspects": [{"image": image, "reason": reason, "score": 0.1, "label": reason, "severity": 9.0}],
        "duplicates": [
            {
                "images": [image, "other_1"],
                "cosine": 0.999,
                "correlation": None,
                "patients": [reason, "BERTA"],
                "across_patients": True,
            }
        ],
        "agreement": {
            "pairs": [{"image": image, "annotators": [reason, "berta"], "agreement": 0.9, "second": True}],
            "sentence": "Labels by two annotators agree.",
        },
        "map": {**embedding_map(embeddings, kinds), "by": "version 4"},
        "scoring": {"scored": 31, "of": 31},
        "warnings": [reason],
    }


def empty() -> dict[str, Any]:
    nothing: dict[str, Any] = {name: [] for name in LISTS}
    none = {"points": [], "explained": [], "shown": 0, "of": 0, "by": "intensities alone, without a model"}
    return {
        **state(),
        **nothing,
        "version": None,
        "curve": {"measure": "Dice", "band": "", "points": [], "monitor": []},
        "stop": advise([], [], []),
        "agreement": {"pairs": [], "sentence": "Nothing is known."},
        "map": none,
    }


class Seen(HTMLParser):
    """The tags with their attributes and the text of a page, whose tags have to be closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("of", [state, empty])
def test_the_files_are_two_pictures_and_a_page(tmp_path, of):
    files = write_rounds(tmp_path / "new" / "folder", of())
    assert [file.name for file in files] == ["curve.png", "map.png", "rounds.html"]
    for file in files[:2]:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert 0.001 < (pixels != 255).any(axis=2).mean() < 0.95
    assert sorted(each.name for each in files[0].parent.iterdir()) == ["curve.png", "map.png", "rounds.html"]


@pytest.mark.parametrize("of", [state, empty])
def test_the_page_is_whole_and_fetches_nothing(of):
    content = page(of())
    seen = Seen(content)
    assert not seen.open
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in seen.tags}
    for _, attributes in seen.tags:
        for name in ("src", "srcset", "href"):
            if name in attributes:
                assert re.match(r"data:image/png;base64,|#", str(attributes[name]))
    assert "url(" not in content
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", content)
    assert any("default-src 'none'" in str(meta.get("content")) for meta in seen.named("meta"))


def test_every_picture_has_words_and_every_wide_table_is_reached_by_the_keyboard():
    seen = Seen(page(state()))
    assert all(picture["alt"] for picture in seen.named("img"))
    assert "version 3" in str(seen.named("img")[0]["alt"])
    frames = [frame for frame in seen.named("div") if frame.get("class") == "scroll"]
    assert len(frames) >= len(seen.named("table")) > 5
    assert all(frame["tabindex"] == "0" and frame["aria-label"] for frame in frames)
    assert any("prefers-color-scheme: dark" in str(source["media"]) for source in seen.named("source"))


def test_what_users_and_files_say_is_text():
    seen = Seen(page(state(image=EVIL, reason=EVIL)))
    assert "script" not in {tag for tag, _ in seen.tags}
    assert not any("onerror" in attributes for _, attributes in seen.tags)
    assert seen.text.count("<script>alert(1)</script>") > 10
    assert "\x1b" not in page(state(image=EVIL, reason=EVIL))


def test_a_thumbnail_that_is_no_png_is_not_shown():
    content = state()
    content["queue"][0]["thumbnail"] = "https://example.org/x.png"
    content["queue"][1]["thumbnail"] = "data:text/html;base64,AAAA"
    seen = Seen(page(content))
    assert len(seen.named("img")) == 2  # the curve and the map
    assert seen.text.count("no picture") == 2


def test_the_page_shows_reasons_advice_and_suspects():
    text = Seen(page(state())).text
    for shown in ("unlike any labelled case", "Too early", "95 % interval", "case_1", "drawn at random", "BERTA"):
        assert shown in text


def test_nothing_to_hand_out_is_said():
    assert "No case is left to hand out." in Seen(page(empty())).text


def test_the_curve_and_the_map_are_drawn_for_dark_pages_too():
    for draw in (draw_curve, draw_map):
        with Image.open(BytesIO(png(draw(state(), DARK)))) as picture:
            assert np.asarray(picture.convert("RGB"))[2, 2].max() < 64


def test_one_judged_version_is_a_point_with_its_interval():
    alone = state()
    alone["curve"]["points"] = alone["curve"]["points"][1:2]
    labels = draw_curve(alone).axes[0].get_legend_handles_labels()[1]
    assert "95 % interval" in labels


def terminal(content: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(round_tables(content))
    return console.file.getvalue()


def test_a_terminal_shows_the_same_without_what_moves_its_cursor():
    shown = terminal(state(reason="[bold]unsure[/bold]\x1b[2J\r\nof the border"))
    assert "[bold]unsure[/bold] [2J of the border" in shown
    assert "\x1b" not in shown
    assert "Labels to look at again" in shown
    assert "Next cases" in shown


def test_an_empty_state_is_a_few_lines():
    shown = terminal(empty())
    assert "too early" in shown
    assert "Labels to look at again" not in shown
    assert len(shown.splitlines()) < 12
