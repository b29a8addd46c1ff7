"""A class in 3D Slicer, whose extension knows segmentations alone: seen as a segment's name, and corrected there."""

import json
import re

import pytest
from classifier_server import CLASSIFIER, start_classifier

SEEN = {"whole": "input_size: [32, 32, 32]", "slices": "input_size: [32, 32, 1]\nslices_of_volume: 4"}


@pytest.fixture(params=SEEN)
def server(tmp_path, request):
    server = start_classifier(tmp_path, SEEN[request.param])
    yield server
    server.stop()


def test_run_names_the_classes_and_the_one_that_is_left_is_submitted(server, open_slicer):
    slicer = open_slicer(server.url)
    assert slicer.fetch() == []
    assert slicer.next_sample() == []
    image = slicer.current_image()
    slicer.choose("segmentationModelSelector", CLASSIFIER)
    assert slicer.run() == []
    segments = slicer.scene().segments
    assert not any(segment.voxels.any() for segment in segments.values())
    shown = list(segments)
    assert {re.fullmatch(r"(slim|stout) \d{1,3} %", name)[1] for name in shown} == {"slim", "stout"}
    percents = [int(name.split()[1]) for name in shown]
    assert percents == sorted(percents, reverse=True) and 99 <= sum(percents) <= 101
    (refusal,) = slicer.submit()
    assert "keep the segment of the right class alone" in refusal.text + refusal.details
    slicer.remove_segment(shown[0])
    (message,) = slicer.submit()
    assert message.kind == "info"
    saved = json.loads((server.studies / "labels" / "classes" / f"{image}.json").read_text())
    assert saved == {"label": shown[1].split()[0]}
    assert "Traceback" not in server.take_log()
    slicer.next_sample()
    assert slicer.current_image() != image
