"""Label maps as DICOM Segmentation objects, by highdicom, and back.

The end of a round whose images lie on a PACS: a label that an annotator submits becomes one BINARY SEG instance in a
series of its own, of the study of its images, each frame with the slice that it belongs to; empty slices have none. It
holds what OHIF and 3D Slicer go by: the referenced series, a frame of reference, each frame's plane, and of each
segment number, name, colour and codes. And the beginning of a training: a SEG of any maker becomes a label map.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import highdicom
import numpy as np
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

import labelrounds
from labelrounds.errors import BadInput, Conflict
from labelrounds.geometry import Affine, grid_distance_mm, ras_affine, ras_to_lps
from labelrounds.sections import LabelCode
from labelrounds.writing import segment_colour

MANUFACTURER = "LabelRounds"
_TISSUE = CodedConcept("85756007", "SCT", "Tissue")  # what 3D Slicer too says of a segment that nobody has coded
_TOLERANCE_MM = 0.02  # DICOM writes positions as decimal texts, NIfTI as float32
_SERIES_NUMBER = 300
_LONGEST_LABEL = 64
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
)


@dataclass(frozen=True)
class Algorithm:
    """The model whose proposal was corrected.

    Attributes:
        name: of the model.
        version: that is served.
    """

    name: str
    version: str


def segmentation(
    array: NDArray[np.uint8],
    affine: Affine,
    sources: Sequence[Dataset],
    names: Sequence[str],
    coded: Mapping[str, LabelCode] | None = None,
    algorithm: Algorithm | None = None,
) -> Any:
    """Return a label map as a DICOM SEG.

    Args:
        array: ``(X, Y, Z)``, along the columns, rows and slices of the series; value ``k`` is ``names[k - 1]``.
        affine: ``(4, 4)``, voxel index to RAS in mm.
        sources: the headers of the series' slices, in any order.
        names: the labels in the order of their values, also those without a voxel.
        coded: the codes of labels; one without is a tissue of that name.
        algorithm: whose proposal it began with; None where there was none.

    Raises:
        Conflict: the slices are not those that the array was made on.
        BadInput: headers without what a SEG needs.
    """
    ordered = in_order(sources)
    _check_same(ordered, array.shape, affine)
    ordered = [_complete(one, affine) for one in ordered]
    coded = coded or {}
    described = [
        _described(number, name, coded.get(name), algorithm, str(ordered[0].SeriesInstanceUID))
        for number, name in enumerate(names, start=1)
    ]
    try:
        made = highdicom.seg.Segmentation(
            source_images=ordered,
            pixel_array=np.ascontiguousarray(array.transpose(2, 1, 0)),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=generate_uid(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=labelrounds.__version__,
            device_serial_number="1",
            content_description="Label map submitted to LabelRounds",
            content_label="LABELMAP",
            pixel_measures=_measures(ordered[0], affine),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"series {ordered[0].SeriesInstanceUID}: no DICOM SEG can be made for it: {error}") from error
    made.SpecificCharacterSet = "ISO_IR 192"  # the names of labels may have letters that the images' set lacks
    made.SeriesDescription = f"LabelRounds: {', '.join(names)}"[:_LONGEST_LABEL]
    made.SeriesDate, made.SeriesTime = made.ContentDate, made.ContentTime
    return made


def in_order(sources: Sequence[Dataset]) -> list[Dataset]:
    """Return the headers of slices in the order in which the image that is read from them has them.

    Raises:
        BadInput: none, or several without a position.
    """
    if not sources:
        raise BadInput("the series has no slices")
    if len(sources) == 1:
        return list(sources)
    try:
        row, column = np.reshape(np.array(sources[0].ImageOrientationPatient, dtype=float), (2, 3))
        normal = np.cross(row, column)
        return sorted(sources, key=lambda one: float(np.dot(np.array(one.ImagePositionPatient, dtype=float), normal)))
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInput("a slice of the series has no orientation or position") from error


def label_map(dataset: Dataset, shape: tuple[int, int, int], affine: Affine) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the label map of a DICOM SEG on the grid of its image, and the names of its values 1, 2, 3.

    Args:
        dataset: a SEG of any maker.
        shape: voxels of the image along ``(X, Y, Z)``.
        affine: ``(4, 4)``, its voxel index to RAS in mm.

    Raises:
        BadInput: no SEG, segments that overlap, more than 255, or voxels that are not the image's.
    """
    try:
        read = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        names = segment_names(read)
        grid = highdicom.VolumeGeometry(ras_to_lps(affine), shape, "PATIENT")
        volume = read.get_volume(combine_segments=True, rescale_fractional=False).match_geometry(
            grid, tol=_TOLERANCE_MM
        )
    except BadInput:
        raise
    except Exception as error:  # highdicom and pydicom raise many kinds on what they can't use
        raise BadInput(f"SEG {dataset.get('SOPInstanceUID', '')}: not usable as a label map: {error}") from error
    return np.asarray(volume.array, dtype=np.uint8), names


def segment_names(dataset: Dataset) -> list[str]:
    """Return the names of a DICOM SEG's segments in the order of their numbers, a gap filled by its number.

    Raises:
        BadInput: no segments, or numbers that no label map has.
    """
    named = {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.get("SegmentSequence", [])}
    named.pop(0, None)  # the background of a LABELMAP
    if not named or min(named) < 1 or max(named) > 255:
        raise BadInput(f"SEG with the segments {sorted(named)[:10]}: a label map has 1 to 255")
    return [named.get(number, f"segment {number}") for number in range(1, max(named) + 1)]


def is_prediction(dataset: Dataset) -> bool:
    """Tell whether a SEG is what some algorithm made alone, so that nothing may be learnt of it.

    MONAI Label itself wrote so of each label that a human had submitted; its name is how those are known.
    """
    segments = dataset.get("SegmentSequence", [])
    return bool(segments) and all(
        item.get("SegmentAlgorithmType") == "AUTOMATIC" and item.get("SegmentAlgorithmName") != "MONAILABEL"
        for item in segments
    )


def _described(number: int, name: str, code: LabelCode | None, algorithm: Algorithm | None, series: str) -> Any:
    kind = highdicom.seg.SegmentAlgorithmTypeValues
    red, green, blue = (255 * part for part in segment_colour(number - 1))
    described = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_LONGEST_LABEL],
        segmented_property_category=_TISSUE if code is None else _concept(code.category),
        segmented_property_type=_TISSUE if code is None else _concept(code),
        algorithm_type=kind.MANUAL if algorithm is None else kind.SEMIAUTOMATIC,
        algorithm_identification=None if algorithm is None else _identified(algorithm),
        # The same for each correction of a label, which shows the same thing in the same images.
        tracking_uid=generate_uid(entropy_srcs=[series, name]),
        tracking_id=name[:_LONGEST_LABEL],
        display_color=highdicom.color.CIELabColor.from_rgb(red, green, blue),
    )
    if code is not None and code.modifier is not None:
        kind_of = described.SegmentedPropertyTypeCodeSequence[0]
        kind_of.SegmentedPropertyTypeModifierCodeSequence = [_concept(code.modifier)]
    return described


def _concept(code: Any) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def _identified(algorithm: Algorithm) -> Any:
    return highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version,
        source=MANUFACTURER,
    )


def _complete(source: Dataset, affine: Affine) -> Dataset:
    """Return a header with what highdicom insists on: tags that may be empty, and the SliceThickness, must be there."""
    completed = Dataset(dict(source.items()))
    for keyword in _MAY_BE_EMPTY:
        if keyword not in completed:
            setattr(completed, keyword, None)
    if not completed.get("SliceThickness"):
        completed.SliceThickness = _written(float(np.linalg.norm(affine[:3, 2])))[0]
    return completed


def _measures(source: Dataset, affine: Affine) -> Any:
    """Return a voxel's size, its gap from the slices' places: the tag that speaks of it is seldom there."""
    along, between, across = np.linalg.norm(affine[:3, :3], axis=0)
    return highdicom.PixelMeasuresSequence(
        pixel_spacing=_written(between, along),
        slice_thickness=float(source.SliceThickness),
        spacing_between_slices=_written(across)[0],
    )


def _written(*values: float) -> list[float]:
    return [float(f"{value:.6g}") for value in values]  # NIfTI's float32 has no more


def _check_same(ordered: Sequence[Dataset], shape: tuple[int, ...], affine: Affine) -> None:
    first, last = ordered[0], ordered[-1]
    found = int(first.Columns), int(first.Rows), len(ordered)
    if found != shape:
        raise Conflict(f"the series on the DICOMweb server has {found} voxels now, the label {shape}: fetch it again")
    if len(ordered) == 1:
        return
    row, column = np.reshape(np.array(first.ImageOrientationPatient, dtype=float), (2, 3))
    between, along = (float(value) for value in first.PixelSpacing)
    origin, end = (np.array(one.ImagePositionPatient, dtype=float) for one in (first, last))
    theirs = ras_affine((row * along, column * between, (end - origin) / (len(ordered) - 1)), origin)
    distance = grid_distance_mm(theirs, affine, shape)
    if distance > _TOLERANCE_MM:
        raise Conflict(f"the series on the DICOMweb server lies {distance:.3g} mm off the label: fetch it again")


def made_at(dataset: Dataset) -> str:
    """Return when a SEG was made, as a text that sorts; "" where it does not say."""
    for day, hour in (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime")):
        if dataset.get(day):
            return f"{_digits(dataset[day].value)} {_digits(dataset.get(hour) or '')}"
    return ""


def _digits(value: Any) -> str:
    if isinstance(value, datetime.date):
        return value.strftime("%Y%m%d")
    return str(value)
