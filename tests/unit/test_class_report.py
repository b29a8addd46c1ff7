"""A classifier's report shows what the numbers say, and a user's text as text."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelrounds.classification.figures import worst_mistakes
from labelrounds.classification.metrics import class_metrics
from labelrounds.classification.report import write_report
from labelrounds.drawing import plain
from labelrounds.errors import BadInput, NotFound

NAMES = ["confusion.png", "roc.png", "reliability.png", "worst.png", "report.html"]


def task(cases: int, labels: int, multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = np.eye(labels)[generator.integers(labels, size=cases)]
    if multilabel:
        truth = (generator.random((cases, labels)) < 0.3).astype(float)
        return 0.4 * truth + 0.6 * generator.random((cases, labels)), truth
    raw = np.exp(1.5 * truth + generator.normal(size=(cases, labels)))
    return raw / raw.sum(axis=1, keepdims=True), truth


def report(folder: Path, probabilities, truth, multilabel=False, pictures=None, **names) -> list[Path]:
    labels = names.get("labels", [f"label {index}" for index in range(truth.shape[1])])
    ids = names.get("ids", [f"case_{index}" for index in range(len(truth))])
    metrics = class_metrics(probabilities, truth, labels, multilabel, bootstraps=50)
    title = names.get("title", "A report")
    return write_report(folder, ids, probabilities, truth, labels, multilabel, metrics, pictures, title)


def pixels(content: bytes | Path) -> np.ndarray:
    with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def is_drawn_on(picture: np.ndarray) -> bool:
    return 0.002 < (picture != 255).any(axis=2).mean() < 0.95


class Seen(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += f"{data}\n"


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("labels", [2, 9])
def test_a_report_is_four_pictures_and_a_page(tmp_path, multilabel, labels):
    made = report(tmp_path / "new" / "folder", *task(60, labels, multilabel), multilabel, lambda _: np.eye(8))
    assert [path.name for path in made] == NAMES
    assert all(is_drawn_on(pixels(path)) for path in made[:4])


def test_the_page_holds_the_pictures_and_the_numbers_and_nothing_from_elsewhere(tmp_path):
    probabilities, truth = task(60, 3, False)
    *pictures, page = report(tmp_path, probabilities, truth)
    seen = Seen(page.read_text(encoding="utf-8"))
    sources = [value for name, value in seen.attributes if name == "src"]
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(source.removeprefix(prefix)) for source in sources] == [
        path.read_bytes() for path in pictures
    ]
    assert not any(name in ("href", "srcset", "style") or name.startswith("on") for name, _ in seen.attributes)
    assert not {"script", "link", "iframe"} & set(seen.tags) and "url(" not in page.read_text(encoding="utf-8")
    found = class_metrics(probabilities, truth, ["label 0", "label 1", "label 2"], False, bootstraps=50)
    low, high = found["intervals_95"]["macro_auroc"]
    rows = seen.text.split()
    for number in (found["accuracy"], found["macro"]["auroc"], low, high, found["ece"], found["brier"]):
        assert f"{number:.3f}" in rows
    assert f"{found['per_class']['label 2']['f1']:.3f}" in rows


def test_what_users_name_is_shown_as_text(tmp_path):
    probabilities, truth = task(30, 2, False)
    evil = "<script>alert('x')</script>"
    made = report(
        tmp_path, probabilities, truth, ids=[evil] * 30, labels=[f"{evil}&amp;", '"> <img src=x onerror=y>'], title=evil
    )
    page = made[-1].read_text(encoding="utf-8")
    seen = Seen(page)
    assert "<script" not in page and "script" not in seen.tags
    assert seen.tags.count("img") == 4 and evil in seen.text and f"{evil}&amp;" in seen.text


def test_no_name_breaks_a_picture(tmp_path):
    names = ["$x^2$", r"\$x", "$$", "a_b^{c", "$\\frac{$", "", "Ärzte", "x" * 500, "two\nlines"]
    probabilities, truth = task(27, len(names), True)
    made = report(tmp_path, probabilities, truth, True, ids=names * 3, labels=names)
    assert all(is_drawn_on(pixels(path)) and max(pixels(path).shape) < 1500 for path in made[:4])


def test_a_long_name_is_cut_in_the_middle_and_a_dollar_is_no_formula():
    assert plain("patient_0000000000000000001", 20) == "patient_0…0000000001"
    assert plain("x" * 22) == "x" * 22 and len(plain("x" * 23)) == 22
    assert plain("5 $ to\n6 $") == r"5 \$ to 6 \$"


def test_undefined_numbers_are_shown_as_a_dash(tmp_path):
    made = report(tmp_path, np.tile([0.9, 0.1], (6, 1)), np.tile([1, 0], (6, 1)))
    assert len(re.findall("<td>-</td>", made[-1].read_text(encoding="utf-8"))) >= 5
    assert all(is_drawn_on(pixels(path)) for path in made[:4])


def test_without_mistakes_the_picture_of_the_worst_says_so(tmp_path):
    truth = np.eye(3)[[0, 1, 2, 0]]
    asked: list[int] = []
    made = report(tmp_path, truth, truth, pictures=asked.append)
    assert not asked and is_drawn_on(pixels(made[3]))
    assert worst_mistakes(truth, truth.astype(bool), False) == []


def test_the_worst_mistakes_are_those_where_the_truth_was_least_likely():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.98, 0.01, 0.01]])
    truth = np.eye(3, dtype=bool)[[1, 1, 2, 1]]
    assert worst_mistakes(probabilities, truth, False) == [(3, 1, 0.01), (0, 1, 0.3), (2, 2, 0.4)]


def test_of_many_labels_a_case_is_as_wrong_as_its_worst_label():
    probabilities = np.array([[0.9, 0.4], [0.2, 0.3], [0.7, 0.1]])
    truth = np.array([[0, 1], [0, 0], [1, 1]], bool)
    found = worst_mistakes(probabilities, truth, True)
    assert [mistake[:2] for mistake in found] == [(0, 0), (2, 1)]
    assert [mistake[2] for mistake in found] == pytest.approx([0.1, 0.1])


def test_at_most_twelve_mistakes_are_shown_each_with_its_own_picture(tmp_path):
    truth = np.eye(2)[[0] * 30]
    probabilities = np.stack([np.linspace(0, 0.4, 30), 1 - np.linspace(0, 0.4, 30)], axis=1)
    asked: list[int] = []

    def picture(index: int) -> np.ndarray:
        asked.append(index)
        return np.full((4, 6), index)

    report(tmp_path, probabilities, truth, pictures=picture)
    assert asked == list(range(12))


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path):
    def picture(index: int) -> np.ndarray:
        if index % 2:
            raise NotFound(f"image {index}")
        return np.where(np.eye(9) > 0, np.nan, 7.0)

    made = report(tmp_path, np.tile([0.1, 0.9], (6, 1)), np.tile([1, 0], (6, 1)), pictures=picture)
    assert is_drawn_on(pixels(made[3]))


def test_a_hundred_labels_are_drawn_in_pictures_that_can_be_opened(tmp_path):
    made = report(tmp_path, *task(200, 100, False))
    assert all(is_drawn_on(pixels(path)) and max(pixels(path).shape) < 3500 for path in made[:4])


def test_as_many_ids_as_cases_are_needed(tmp_path):
    with pytest.raises(BadInput, match="1 ids for 6 cases"):
        report(tmp_path, *task(6, 2, False), ids=["one"])
    assert not list(tmp_path.iterdir())
