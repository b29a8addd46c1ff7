"""A label map becomes a DICOM SEG that others can read, and is the same when it comes back."""

import random
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pydicom_seg
import pytest
import SimpleITK
from dicom_series import slices

from labelrounds import __version__
from labelrounds.dicom_seg import Algorithm, in_order, is_prediction, label_map, segment_names, segmentation
from labelrounds.errors import BadInput, Conflict
from labelrounds.geometry import ras_to_lps
from labelrounds.reading import read_image
from labelrounds.sections import Code, LabelCode
from labelrounds.writing import segment_colour

# Turned about two axes, as a coronal series of a head that lay askew.
OBLIQUE = (0.97, 0.2431049, 0.0, 0.06, -0.2394052, -0.969063)
NAMES = ("liver", "läsion 肝", "cyst")
LIVER = LabelCode(value="10200004", meaning="Liver")
CYST = LabelCode(
    value="367643001", meaning="Cyst", category=Code(value="49755003", meaning="Morphologically Abnormal Structure")
)


def orthonormal(values) -> tuple[float, ...]:
    row, column = np.array(values[:3]) / np.linalg.norm(values[:3]), np.array(values[3:])
    column = column - row * (row @ column)
    return (*row, *(column / np.linalg.norm(column)))


@pytest.fixture(params=[(1, 0, 0, 0, 1, 0), orthonormal(OBLIQUE)], ids=["axial", "oblique"])
def series(request, tmp_path: Path):
    files = slices("1.2.3.20", orientation=request.param)
    folder = tmp_path / "series"
    folder.mkdir()
    for number, data in enumerate(files):
        pydicom.dcmwrite(folder / f"{number}.dcm", data, enforce_file_format=True)
    random.Random(3).shuffle(files)
    return files, read_image(folder)


def drawn(shape) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[1:4, 2:5, 2], array[5, 1, 4], array[7, 5, 2] = 1, 3, 3
    return array


def made(series, **options) -> tuple[np.ndarray, pydicom.Dataset]:
    files, image = series
    array = drawn(image.shape)
    return array, segmentation(array, image.affine, files, NAMES, **options)


def test_a_label_map_is_the_same_after_it_was_a_file(series, tmp_path):
    array, seg = made(series)
    seg.save_as(tmp_path / "seg.dcm")
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    back, names = label_map(read, series[1].shape, series[1].affine)
    assert np.array_equal(back, array) and names == list(NAMES)


def test_only_slices_with_a_voxel_have_a_frame_and_each_says_of_which_file_it_is(series):
    array, seg = made(series)
    frames = seg.PerFrameFunctionalGroupsSequence
    found = [
        (
            int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
            str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID),
            tuple(frame.PlanePositionSequence[0].ImagePositionPatient),
        )
        for frame in frames
    ]
    of_slice = {index: one for index, one in enumerate(in_order(series[0]))}
    expected = [(number, of_slice[z]) for number in (1, 2, 3) for z in range(6) if (array[..., z] == number).any()]
    assert sorted(found) == [
        (number, str(one.SOPInstanceUID), tuple(one.ImagePositionPatient)) for number, one in expected
    ]
    assert int(seg.NumberOfFrames) == 3


def test_it_lies_where_the_image_lies_for_a_reader_that_knows_nothing_of_us(series, tmp_path):
    array, seg = made(series)
    seg.save_as(tmp_path / "seg.dcm")
    image = pydicom_seg.MultiClassReader().read(pydicom.dcmread(tmp_path / "seg.dcm")).image
    voxels = SimpleITK.GetArrayFromImage(image)
    theirs = sorted(
        (int(voxels[tuple(index)]), *np.round(image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]), 3))
        for index in np.argwhere(voxels)
    )
    lps = ras_to_lps(series[1].affine)
    ours = sorted(
        (int(array[tuple(index)]), *np.round(lps[:3, :3] @ index + lps[:3, 3], 3)) for index in np.argwhere(array)
    )
    assert np.abs(np.subtract(theirs, ours)).max() < 2e-3


def test_it_belongs_to_the_patient_the_study_and_the_frame_of_reference_of_its_images(series):
    _, seg = made(series)
    source = series[0][0]
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyID",
        "AccessionNumber",
        "FrameOfReferenceUID",
    ):
        assert seg[keyword].value == source[keyword].value, keyword
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID and seg.Modality == "SEG"
    (about,) = seg.ReferencedSeriesSequence
    assert about.SeriesInstanceUID == source.SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in about.ReferencedInstanceSequence} == {
        one.SOPInstanceUID for one in series[0]
    }
    assert (seg.SegmentationType, seg.SOPClassUID) == ("BINARY", pydicom.uid.SegmentationStorage)
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert np.allclose(orientation, source.ImageOrientationPatient, atol=1e-6)
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.5, 0.75]
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(2, abs=1e-4)


def test_a_segment_has_its_name_number_colour_codes_and_the_algorithm_that_proposed_it(series):
    _, seg = made(series, coded={"liver": LIVER, "cyst": CYST}, algorithm=Algorithm("unet_ct", "7"))
    read = highdicom.seg.Segmentation.from_dataset(seg)
    found = [read.get_segment_description(number) for number in read.segment_numbers]
    assert [one.segment_label for one in found] == list(NAMES)
    kinds = [(one.segmented_property_category.value, one.segmented_property_type.value) for one in found]
    assert kinds == [("91723000", "10200004"), ("85756007", "85756007"), ("49755003", "367643001")]
    assert {one.segmented_property_type.scheme_designator for one in found} == {"SCT"}
    for index, one in enumerate(found):
        rgb = highdicom.color.CIELabColor.from_dicom_value(one.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        assert np.abs(np.array(rgb) - 255 * np.array(segment_colour(index))).max() <= 2
        assert (one.SegmentAlgorithmType, one.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "unet_ct")
    (by,) = found[0].SegmentationAlgorithmIdentificationSequence
    assert (by.AlgorithmName, by.AlgorithmVersion, by.AlgorithmSource) == ("unet_ct", "7", "LabelRounds")
    assert seg.SoftwareVersions == __version__


def test_a_label_without_a_proposal_is_a_humans_alone(series):
    _, seg = made(series)
    assert {one.SegmentAlgorithmType for one in seg.SegmentSequence} == {"MANUAL"}
    assert not is_prediction(seg)


def test_a_corrected_label_is_another_object_that_tracks_the_same_things(series):
    (_, one), (_, other) = made(series), made(series)
    assert one.SOPInstanceUID != other.SOPInstanceUID and one.SeriesInstanceUID != other.SeriesInstanceUID
    tracked = [[segment.TrackingUID for segment in seg.SegmentSequence] for seg in (one, other)]
    assert tracked[0] == tracked[1] and len(set(tracked[0])) == 3


def test_a_label_of_one_slice_and_one_without_a_voxel_come_back(series):
    files, image = series
    for voxels in ([(7, 5, 0)], []):
        array = np.zeros(image.shape, np.uint8)
        for voxel in voxels:
            array[voxel] = 2
        back, names = label_map(segmentation(array, image.affine, files, NAMES), image.shape, image.affine)
        assert np.array_equal(back, array) and names == list(NAMES)


def test_a_series_that_has_changed_takes_no_label(series):
    files, image = series
    array = drawn(image.shape)
    with pytest.raises(Conflict, match="voxels"):
        segmentation(array, image.affine, files[:-1], NAMES)
    moved = image.affine.copy()
    moved[0, 3] += 1
    with pytest.raises(Conflict, match="mm off"):
        segmentation(array, moved, files, NAMES)


def test_headers_that_lack_what_may_be_empty_take_a_label(series):
    files, image = series
    for one in files:
        del one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex, one.StudyID, one.StudyTime
        del one.AccessionNumber, one.StudyDate
        one.SliceThickness = None
    seg = segmentation(drawn(image.shape), image.affine, files, NAMES)
    assert seg.PatientName is None and seg.PatientID is None
    assert float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness) == 2
    assert "PatientID" not in files[0]


def test_headers_without_a_position_are_refused(series):
    files, image = series
    del files[2].ImagePositionPatient
    with pytest.raises(BadInput, match="position"):
        segmentation(drawn(image.shape), image.affine, files, NAMES)
    with pytest.raises(BadInput, match="no slices"):
        in_order([])


def test_a_segmentation_of_another_grid_and_what_is_none_are_refused(series):
    _, seg = made(series)
    _, image = series
    moved = image.affine.copy()
    moved[:3, 3] += 0.3
    with pytest.raises(BadInput, match="not usable"):
        label_map(seg, image.shape, moved)
    with pytest.raises(BadInput, match="not usable"):
        label_map(series[0][0], image.shape, image.affine)


def test_segments_that_overlap_are_no_label_map(series):
    files, image = series
    for one in files:
        one.SliceThickness = 2
    stacked = np.zeros((6, 6, 8, 2), np.uint8)
    stacked[2, 2:4, 2:4] = 1
    described = [
        highdicom.seg.SegmentDescription(
            n, f"s{n}", *2 * [highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")], "MANUAL"
        )
        for n in (1, 2)
    ]
    seg = highdicom.seg.Segmentation(
        in_order(files), stacked, "BINARY", described, "1.2.9", 1, "1.2.9.1", 1, "m", "m", "1", "1"
    )
    with pytest.raises(BadInput, match="overlap"):
        label_map(seg, image.shape, image.affine)


def test_what_an_algorithm_made_alone_is_no_label_unless_monai_label_wrote_so_of_a_humans():
    def seg(kind: str, name: str) -> pydicom.Dataset:
        segment, data = pydicom.Dataset(), pydicom.Dataset()
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = kind, name
        data.SegmentSequence = [segment]
        return data

    assert is_prediction(seg("AUTOMATIC", "some product"))
    assert not is_prediction(seg("AUTOMATIC", "MONAILABEL"))
    assert not is_prediction(seg("SEMIAUTOMATIC", "some product"))


def test_the_segments_of_a_dicom_seg_are_named_in_order_of_their_numbers():
    data = pydicom.Dataset()
    data.SegmentSequence = [pydicom.Dataset(), pydicom.Dataset()]
    for item, number, name in zip(data.SegmentSequence, (3, 1), ("spleen", "liver"), strict=True):
        item.SegmentNumber, item.SegmentLabel = number, name
    assert segment_names(data) == ["liver", "segment 2", "spleen"]
    data.SegmentSequence[0].SegmentNumber = 300
    with pytest.raises(BadInput, match="300"):
        segment_names(data)
