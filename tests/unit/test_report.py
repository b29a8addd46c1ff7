"""The table says what the scores say, and the picture shows a patient as a radiologist sees one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from labelrounds.errors import BadInput
from labelrounds.phantoms import LABELS, make_phantom
from labelrounds.report import Case, LearningCurve, as_seen, dice_table, draw_report, fullest_slice

YELLOW, ORANGE, BLUE = (0xF0, 0xE4, 0x42), (0xE8, 0x60, 0x1C), (0x56, 0xB4, 0xE9)
NOTHING = LearningCurve()


def as_text(table: Table) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row(table: Table, organ: str) -> list[str]:
    (line,) = [line for line in as_text(table).splitlines() if line.startswith(f"│ {organ} ")]
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def black_case(truth: NDArray[np.uint8], spacing_mm: tuple[float, float, float] = (2, 2, 2), **arrays: object) -> Case:
    """A case whose image is black, so that all colour in its picture is an outline."""
    empty = np.zeros_like(truth)
    given = {"before": None, "after": empty, **arrays}
    return Case("case", np.full(truth.shape, -1000), truth, spacing_mm=spacing_mm, **given)  # type: ignore[arg-type]


def block(shape: Sequence[int], *where: slice) -> NDArray[np.uint8]:
    label = np.zeros(shape, np.uint8)
    label[where] = 1
    return label


def pixels(path: Path, colour: tuple[int, int, int]) -> NDArray[np.int64]:
    """``(N, 2)`` rows and columns of a colour within the black pictures, which the legend is not."""
    picture = np.rint(imread(path)[..., :3] * 255).astype(int)
    rows, columns = np.nonzero((picture == 0).all(axis=-1))
    picture = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.argwhere(np.abs(picture - colour).max(axis=-1) < 40) - np.array(picture.shape[:2]) // 2


# The table


def test_the_table_has_mean_range_and_change_of_each_organ():
    table = dice_table({"liver": [0.4, 0.6], "spleen": [0.1, 0.1]}, {"liver": [0.8, 0.9], "spleen": [0.3, 0.7]})
    assert row(table, "liver") == ["liver", "0.500 (0.40 .. 0.60)", "0.850 (0.80 .. 0.90)", "+0.350"]
    assert row(table, "spleen") == ["spleen", "0.100 (0.10 .. 0.10)", "0.500 (0.30 .. 0.70)", "+0.400"]


def test_the_last_row_is_the_mean_over_organs():
    table = dice_table({"liver": [0.4, 0.6], "spleen": [0.1]}, {"liver": [0.8, 0.9], "spleen": [0.3]})
    assert row(table, "mean") == ["mean", "0.300", "0.575", "+0.275"]


def test_an_organ_that_is_nowhere_in_a_case_does_not_pull_the_mean_down():
    table = dice_table(None, {"liver": [0.8, float("nan")], "spleen": [float("nan")]})
    assert row(table, "liver") == ["liver", "0.800 (0.80 .. 0.80)"]
    assert row(table, "spleen") == ["spleen", "-"]
    assert row(table, "mean") == ["mean", "0.800"]


def test_without_a_model_before_the_table_has_no_columns_for_it():
    table = dice_table(None, {"liver": [0.8]})
    assert [column.header for column in table.columns] == ["organ", "after"]


def test_an_organ_that_is_new_in_this_round_has_no_change():
    table = dice_table({"liver": [0.5]}, {"liver": [0.8], "spine": [0.4]})
    assert row(table, "spine") == ["spine", "-", "0.400 (0.40 .. 0.40)", "-"]


# The picture


def test_a_slice_is_seen_from_the_feet_with_the_front_up():
    axial = np.zeros((4, 3))
    axial[3, 2] = 1  # Right and anterior.
    seen = as_seen(axial)
    assert seen.shape == (3, 4)
    # Rows run from posterior to anterior, since the first is drawn at the bottom.
    assert seen[2, 0] == 1


def test_the_patients_right_front_is_at_the_upper_left_of_the_png(tmp_path: Path):
    shape = (60, 50, 4)
    truth = block(shape, slice(25, 35), slice(20, 30))
    right_front = block(shape, slice(38, 44), slice(34, 40))
    path = draw_report([black_case(truth, after=right_front)], ["organ"], NOTHING, tmp_path / "report.png")
    down, across = pixels(path, BLUE).mean(axis=0) - pixels(path, YELLOW).mean(axis=0)
    assert down < -30
    assert across < -30


def test_a_square_in_millimetres_is_a_square_in_the_png(tmp_path: Path):
    # 40 mm by 40 mm, on voxels of 2 mm by 5 mm.
    truth = block((60, 24, 4), slice(20, 40), slice(8, 16), slice(1, 3))
    path = draw_report([black_case(truth, (2, 5, 3))], ["organ"], NOTHING, tmp_path / "report.png")
    height, width = np.ptp(pixels(path, YELLOW), axis=0)
    assert width > 50
    assert height == pytest.approx(width, rel=0.05)


def test_truth_before_and_after_are_outlined_each_in_its_colour(tmp_path: Path):
    shape = (60, 50, 4)
    truth = block(shape, slice(25, 35), slice(20, 30))
    before, after = block(shape, slice(14, 22), slice(20, 30)), block(shape, slice(38, 46), slice(20, 30))
    path = draw_report([black_case(truth, before=before, after=after)], ["organ"], NOTHING, tmp_path / "report.png")
    assert all(len(pixels(path, colour)) > 50 for colour in (YELLOW, ORANGE, BLUE))
    # "before" is drawn above "after"; what is on the patient's right is on the left.
    down, across = pixels(path, BLUE).mean(axis=0) - pixels(path, ORANGE).mean(axis=0)
    assert down > 50
    assert across < -50


def test_without_a_prediction_before_there_is_no_row_for_it(tmp_path: Path):
    truth = block((30, 30, 4), slice(8, 20), slice(8, 20))
    one = draw_report([black_case(truth)], ["organ"], NOTHING, tmp_path / "one.png")
    two = draw_report([black_case(truth, before=truth)], ["organ"], NOTHING, tmp_path / "two.png")
    assert not len(pixels(one, ORANGE))
    assert imread(one).shape[0] < imread(two).shape[0]


def test_a_full_report_of_phantoms_is_written_where_it_was_asked_for(tmp_path: Path):
    cases = []
    for seed in (1, 2):
        phantom = make_phantom(seed)
        before = np.roll(phantom.label, 6, axis=0)
        cases.append(Case.oriented(phantom.name, phantom.image, phantom.label, before, phantom.label, phantom.affine))
    curve = LearningCurve([(2, 0.4), (4, 0.7)], [1, 2, 3], [1.2, 0.8, 0.5], [float("nan"), 0.5, 0.7])
    path = tmp_path / "new" / "report.png"
    assert draw_report(cases, LABELS, curve, path) == path
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width = imread(path).shape[:2]
    assert 700 < height < 2000
    assert 1000 < width < 2500


def test_a_case_without_any_organ_and_a_model_that_finds_none_can_be_drawn(tmp_path: Path):
    empty = np.zeros((20, 20, 4), np.uint8)
    draw_report([black_case(empty)], ["organ"], NOTHING, tmp_path / "report.png")
    assert not len(pixels(tmp_path / "report.png", YELLOW))


def test_drawing_leaves_the_state_of_pyplot_alone():
    code = "import sys, labelrounds.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_the_slice_shown_is_the_one_with_most_of_the_organs_not_of_the_largest():
    label = np.zeros((10, 10, 5), np.uint8)
    label[:, :, 1] = 1
    label[:5, :, 3] = 1
    label[5:7, 0, 3] = 2
    assert fullest_slice(label) == 3
    label[label == 2] = 0
    assert fullest_slice(label) == 1


def test_the_slice_shown_of_an_empty_label_is_the_middle_one():
    assert fullest_slice(np.zeros((3, 3, 9), np.uint8)) == 4


@pytest.mark.parametrize("geometry", ["flipped", "permuted"])
def test_a_case_is_turned_to_right_anterior_superior_however_it_is_stored(geometry: str):
    phantom = make_phantom(2, geometry)
    case = Case.oriented("case", phantom.image, phantom.label, None, phantom.label, phantom.affine)
    centre = {name: np.argwhere(case.truth == value).mean(axis=0) for value, name in enumerate(LABELS, start=1)}
    assert centre["liver"][0] > centre["spleen"][0]
    assert centre["liver"][1] > centre["spine"][1]
    assert centre["liver"][2] > centre["right_kidney"][2]
    extent_mm = np.array(case.image.shape) * case.spacing_mm
    assert extent_mm == pytest.approx((320, 280, 192), abs=5)
    assert case.before is None


def test_a_flipped_case_is_the_axial_one():
    cases = []
    for geometry in ("axial", "flipped"):
        phantom = make_phantom(2, geometry)
        cases.append(Case.oriented("case", phantom.image, phantom.label, None, phantom.label, phantom.affine))
    assert np.array_equal(cases[0].truth, cases[1].truth)
    assert cases[0].spacing_mm == pytest.approx(cases[1].spacing_mm)


def test_a_report_without_cases_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="at least one case"):
        draw_report([], ["organ"], NOTHING, tmp_path / "report.png")


def test_a_prediction_of_another_shape_is_refused_by_name(tmp_path: Path):
    case = black_case(block((8, 8, 8)), after=block((8, 8, 7)))
    with pytest.raises(BadInput, match=r"case: after has shape \(8, 8, 7\), the image \(8, 8, 8\)"):
        draw_report([case], ["organ"], NOTHING, tmp_path / "report.png")


def test_a_curve_with_an_epoch_without_a_loss_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="2, 1 and 2 values"):
        draw_report(
            [black_case(block((8, 8, 8)))], ["organ"], LearningCurve([], [1, 2], [1.0], [0, 0]), tmp_path / "r.png"
        )
