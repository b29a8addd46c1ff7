"""An archive's images become label maps in a folder that mirrors it, each once, however often the run is ended."""

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from blobs import write_dicom
from training_runs import labelled

from labelrounds import fleet_work
from labelrounds.archive import plan, segment_archive
from labelrounds.archive_files import find_images, identity, images_in
from labelrounds.archive_manifest import Manifest
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, Cancelled, Conflict, NotFound, OutOfSpace
from labelrounds.fleet import LocalCrew, crew_of
from labelrounds.networks import build_network
from labelrounds.reading import read_image, read_label

PLACES = ("a/one.nii.gz", "a/two.nii.gz", "b/c/one.nii.gz", "three.nii.gz")


@pytest.fixture
def images(tmp_path) -> Path:
    """An archive of four images in four folders."""
    for seed, place in enumerate(PLACES):
        path = tmp_path / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(labelled(tmp_path, "made", seed).image, path)
    return tmp_path / "images"


@pytest.fixture
def segmented(config, images, tmp_path, monkeypatch):
    """Segment the archive, and return what was said and which images were computed."""
    Checkpoints(config).publish(build_network(config), {})
    computed: list[str] = []
    read = fleet_work.read_image

    def noted(path, **options):
        computed.append(Path(path).relative_to(images).as_posix())
        return read(path, **options)

    monkeypatch.setattr(fleet_work, "read_image", noted)

    def run(ending=".nii.gz", make_crew=None, output=None, **options):
        computed.clear()
        where = output or tmp_path / "out"
        said = segment_archive(config, images, where, ending, "cpu", make_crew or crew_of("", None), **options)
        return said, sorted(computed)

    return run


def rows(output: Path) -> dict[str, dict]:
    """Return the manifest's table by image, each of which it has once."""
    with (output / "manifest.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = list(csv.DictReader(file))
    assert len({row["image"] for row in found}) == len(found)
    return {row["image"]: row for row in found}


def maps(output: Path) -> list[str]:
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*.nii.gz"))


def stopping_after(count: int):
    """Return what makes a crew of this process that is asked to stop after so many cases."""

    def make(order, stop):
        crew = LocalCrew(order.begin(), stop)
        ended, seen = crew.ended, []

        def counted(timeout_s):
            seen.extend(found := ended(timeout_s))
            if len(seen) >= count:
                stop.set()
            return found

        crew.ended = counted
        return crew

    return make


def test_label_maps_lie_where_the_images_lie_and_the_table_says_what_they_hold(segmented, images, tmp_path):
    said, computed = segmented()
    assert "4 of 4 image(s) segmented" in said and computed == sorted(PLACES)
    assert maps(tmp_path / "out") == sorted(PLACES)
    table = rows(tmp_path / "out")
    assert [(name, row["output"], row["error"]) for name, row in table.items()] == [(p, p, "") for p in sorted(PLACES)]
    label = read_label(tmp_path / "out" / PLACES[0])
    assert label.shape == read_image(images / PLACES[0]).shape
    assert float(table[PLACES[0]]["near_ml"]) == pytest.approx((label.array == 1).sum() / 1000, abs=1e-3)


def test_a_further_run_does_only_what_is_new_or_has_changed(segmented, images, tmp_path):
    segmented()
    before = {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in PLACES}
    said, computed = segmented()
    assert computed == [] and "4 were known" in said
    assert before == {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in PLACES}
    shutil.copy(images / "three.nii.gz", images / "four.nii.gz")
    os.utime(images / "a/one.nii.gz", ns=(1, 1))
    (tmp_path / "out" / "b/c/one.nii.gz").unlink()
    assert segmented()[1] == ["a/one.nii.gz", "b/c/one.nii.gz", "four.nii.gz"]
    assert len(rows(tmp_path / "out")) == 5


def test_another_version_does_all_anew(segmented, config):
    segmented()
    Checkpoints(config).publish(build_network(config), {})
    assert len(segmented()[1]) == 4


def test_a_stopped_run_is_gone_on_with_and_no_image_is_done_twice(segmented, tmp_path):
    with pytest.raises(Cancelled, match="Run the same again to go on"):
        segmented(make_crew=stopping_after(1))
    first = [row["image"] for row in rows(tmp_path / "out").values()]
    assert 1 <= len(first) < 4
    _, second = segmented()
    assert sorted([*first, *second]) == sorted(PLACES) and maps(tmp_path / "out") == sorted(PLACES)


def test_a_run_that_is_stopped_while_it_does_all_anew_does_not_count_what_was_done_before(segmented, config):
    segmented()
    Checkpoints(config).publish(build_network(config), {})
    with pytest.raises(Cancelled, match="Run the same again to go on"):
        segmented(make_crew=stopping_after(1))
    assert 0 < len(segmented()[1]) < 4


def test_a_line_that_a_kill_cut_short_is_dropped_and_its_image_done_again(segmented, tmp_path):
    segmented()
    lines = tmp_path / "out" / "manifest.jsonl"
    whole = lines.read_bytes().splitlines(keepends=True)
    lost = json.loads(whole[-1])["image"]
    lines.write_bytes(b"".join(whole[:-1]) + whole[-1][:20])
    assert segmented()[1] == [lost]
    assert all(json.loads(line) for line in lines.read_text().splitlines()) and len(rows(tmp_path / "out")) == 4


def test_an_unreadable_image_is_a_row_and_is_tried_again_when_it_changes_or_is_asked_for(segmented, images, tmp_path):
    (images / "a" / "broken.nii.gz").write_bytes(b"no gzip")
    (images / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    said, _ = segmented()
    assert "4 of 6" in said and "2 could not be" in said
    table = rows(tmp_path / "out")
    assert "gzip" in table["a/broken.nii.gz"]["error"] and "No such file" in table["gone.nii.gz"]["error"]
    assert segmented()[1] == []
    assert segmented(again=True)[1] == ["a/broken.nii.gz"]
    shutil.copy(images / "three.nii.gz", images / "a" / "broken.nii.gz")
    shutil.copy(images / "three.nii.gz", tmp_path / "nowhere.nii.gz")
    assert segmented()[1] == ["a/broken.nii.gz", "gone.nii.gz"]
    assert not any(row["error"] for row in rows(tmp_path / "out").values())


def test_images_whose_label_maps_would_share_a_place_are_refused_and_the_others_done(segmented, images, tmp_path):
    shutil.copy(images / "three.nii.gz", images / "Three.nii.gz")
    said, computed = segmented()
    assert "2 could not be" in said and "three.nii.gz" not in computed and "Three.nii.gz" not in computed
    assert "another image would be written to" in rows(tmp_path / "out")["three.nii.gz"]["error"]
    assert len(maps(tmp_path / "out")) == 3


def test_links_that_lead_in_a_circle_end_and_no_image_is_found_twice(images, tmp_path):
    (images / "a" / "round").symlink_to(images)
    (images / "a" / "itself").symlink_to(images / "a" / "itself")
    (images / "0_first").symlink_to(images / "b")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(images / "three.nii.gz", tmp_path / "elsewhere" / "more.nii.gz")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    found = [path.relative_to(images).as_posix() for path in images_in(images)]
    assert sorted(found) == sorted([*PLACES, "linked/more.nii.gz"])


def test_a_folder_that_can_not_be_listed_is_told(images, monkeypatch):
    listed = os.scandir

    def refused(folder):
        if folder == images / "b":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", refused)
    found = {image.path.name: image.reason for image in find_images(images)}
    assert found == {"one.nii.gz": "", "two.nii.gz": "", "three.nii.gz": "", "b": "Permission denied"}


def test_an_output_folder_inside_the_archive_is_not_taken_for_images(segmented, images):
    inside = images / "segmentations"
    segmented(output=inside)
    assert segmented(output=inside)[1] == [] and maps(inside) == sorted(PLACES)


def test_a_series_is_one_image_and_a_single_file_an_archive_of_one(tmp_path):
    (tmp_path / "series").mkdir()
    for number in range(2):
        write_dicom(tmp_path / "series" / f"IM000{number}", "1.2.3", at_mm=float(number))
    (planned,) = plan(tmp_path / "series", tmp_path / "out", ".seg.nrrd")
    assert planned.case.output == tmp_path / "out" / "series.seg.nrrd"
    assert identity(planned.case.image).startswith("2-")
    (planned,) = plan(tmp_path / "series" / "IM0000", tmp_path / "out", ".seg.nrrd")
    assert planned.case.output == tmp_path / "out" / "IM0000.seg.nrrd"


@pytest.mark.parametrize("output", [".", ".."])
def test_an_output_where_label_maps_could_replace_images_is_refused(segmented, images, output):
    before = {path: path.read_bytes() for path in images_in(images)}
    with pytest.raises(BadInput, match="could replace images"):
        segmented(output=images / output)
    assert before == {path: path.read_bytes() for path in images_in(images)}


@pytest.mark.parametrize(
    "theirs",
    [
        {"three.nii.gz": b"a human's"},
        {"manifest.csv": b"my,own,table\n"},
        {"manifest.jsonl": b'{"audio": "a.wav"}'},
        {"manifest.jsonl": b"9" * 5000},
        {"manifest.jsonl": b"", "three.nii.gz": b"a human's"},
        {"manifest.jsonl": b'{"manifest of": "lab', "three.nii.gz": b"a human's"},
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(segmented, tmp_path, theirs):
    (tmp_path / "out").mkdir()
    for name, content in theirs.items():
        (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(BadInput, match="holds files of something else"):
        segmented()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == theirs


@pytest.mark.parametrize("begun", [b"", b'{"manifest of": "lab'])
def test_a_run_that_was_killed_before_it_had_done_anything_is_begun_anew(segmented, tmp_path, begun):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_bytes(begun)
    assert len(segmented()[1]) == len(PLACES) and segmented()[1] == []


@pytest.mark.parametrize(
    "line",
    [
        {"image": 5, "status": "done"},
        {"image": "three.nii.gz"},
        {"image": "three.nii.gz", "status": "fine"},
        {"image": "three.nii.gz", "status": "done", "volumes_ml": None},
        ["three.nii.gz"],
        {},
    ],
)
def test_a_damaged_line_is_as_good_as_none(segmented, tmp_path, line):
    segmented()
    with (tmp_path / "out" / "manifest.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert segmented()[1] == [] and len(rows(tmp_path / "out")) == len(PLACES)


def test_a_manifest_that_the_disk_can_not_take_is_reported_and_frees_the_folder(segmented, tmp_path, monkeypatch):
    write = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("labelrounds.archive_manifest.os.fsync", full)
    with pytest.raises(OutOfSpace, match=r"manifest\.jsonl: not written"):
        segmented()
    monkeypatch.setattr("labelrounds.archive_manifest.os.fsync", write)
    assert len(segmented()[1]) == len(PLACES)


def test_names_that_differ_by_capitals_alone_are_refused_with_the_reason(segmented, images, tmp_path):
    shutil.copy(images / "three.nii.gz", images / "Three.nii.gz")
    segmented()
    table = rows(tmp_path / "out")
    assert {name for name, row in table.items() if "where capitals do not count" in row["error"]} == {
        "three.nii.gz",
        "Three.nii.gz",
    }


def test_two_runs_at_once_on_one_folder_are_refused(segmented, tmp_path):
    with Manifest(tmp_path / "out"), pytest.raises(Conflict, match="another run"):
        segmented()


def test_a_full_disk_ends_the_run_and_what_is_done_stays(segmented, monkeypatch, tmp_path):
    write, written = fleet_work.write_label, []

    def full(array, affine, path, names):
        if len(written) == 2:
            raise OutOfSpace(f"{path.name}: not written, no space left on device")
        written.append(path)
        return write(array, affine, path, names)

    monkeypatch.setattr(fleet_work, "write_label", full)
    with pytest.raises(OutOfSpace, match="no space left"):
        segmented()
    monkeypatch.setattr(fleet_work, "write_label", write)
    assert len(segmented()[1]) == 2


def test_a_name_that_is_not_unicode_is_kept(segmented, images, tmp_path):
    name = os.fsdecode(b"\xff\xfe.nii.gz")
    shutil.copy(images / "three.nii.gz", images / name)
    segmented()
    assert rows(tmp_path / "out")[name]["output"] == name and (tmp_path / "out" / name).is_file()
    assert segmented()[1] == []


def test_wrong_endings_sources_and_models_without_a_version_are_refused(config, images, tmp_path):
    def attempt(source=images, ending=".nii.gz"):
        segment_archive(config, source, tmp_path / "out", ending, "cpu", crew_of("", None))

    with pytest.raises(BadInput, match=r"ending '\.mha' is not one of"):
        attempt(ending=".mha")
    with pytest.raises(NotFound, match="no such file or folder"):
        attempt(source=tmp_path / "nowhere")
    with pytest.raises(Conflict, match="no trained version"):
        attempt()
    Checkpoints(config).publish(build_network(config), {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no image in it"):
        attempt(source=tmp_path / "empty")


def test_what_a_killed_worker_left_half_written_is_removed(segmented, tmp_path):
    segmented()
    left = tmp_path / "out" / "a" / ".labelrounds-left"
    left.mkdir()
    os.utime(left, (1, 1))
    segmented()
    assert not left.exists()
