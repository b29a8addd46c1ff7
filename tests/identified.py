"""DICOM images that say whose they are wherever they can: what must never be found anywhere else."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from tests.dicom_files import with_file_meta

CANARY = "CANARYDOE"
DATE, UID = "19770707", "1.2.3.77777"
_TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
_VALUES: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, CANARY),
    **{"DA": DATE, "DT": DATE + "121212", "TM": "121212", "AS": "077Y", "UR": f"http://{CANARY}"},
    **dict.fromkeys(("DS", "IS"), "7"),
    **dict.fromkeys(("OB", "OW", "UN"), CANARY.encode() + b"0"),
}
# An image needs its own values of these; files by their series and instance.
_OF_THE_IMAGE = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "ReferencedSOPClassUID")


def fill(dataset: Dataset, tags: list[tuple[int, int]]) -> None:
    """Give attributes values that hold the canary, an old date or an old UID; a sequence, an item that has them."""
    for group, element in tags:
        tag = pydicom.tag.Tag(group, element)
        if not dictionary_has_tag(tag) or group < 8 or keyword_for_tag(tag) in _OF_THE_IMAGE:
            continue
        kind = dictionary_VR(tag).split(" or ")[0]
        if kind == "SQ":
            item = Dataset()
            item.PatientName, item.InstitutionName, item.StudyDate = CANARY, CANARY, DATE
            item.ReferencedSOPInstanceUID = f"{UID}.7"
            dataset.add_new(tag, "SQ", [item])
        elif kind == "UI":
            dataset.add_new(tag, "UI", f"{UID}.{group}.{element}")
        elif kind in _VALUES:
            dataset.add_new(tag, kind, _VALUES[kind])


def write_identified(path: Path, tags: list[tuple[int, int]] = (), index: int = 0, **changes: Any) -> Path:
    """Write a CT slice of 16 x 16 whose header, preamble and padding name its patient.

    Args:
        path: the file.
        tags: further attributes to fill.
        index: of the slice in its series.
        changes: attributes by their keywords; None removes one.
    """
    data = Dataset()
    fill(data, tags)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{UID}.3.{index}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = f"{UID}.1", f"{UID}.2", f"{UID}.4"
    data.PatientName, data.PatientID, data.PatientBirthDate = f"{CANARY}^JOHN", f"{CANARY}-4711", DATE
    data.StudyDate, data.StudyTime, data.AccessionNumber = DATE, "121212", f"A{CANARY}"
    data.ReferringPhysicianName, data.InstitutionName, data.StudyDescription = CANARY, CANARY, f"of {CANARY}"
    data.SeriesDescription, data.OperatorsName, data.StationName = CANARY, [CANARY, CANARY], CANARY
    data.ImageComments, data.PatientComments, data.OtherPatientNames = CANARY, CANARY, CANARY
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows = data.Columns = 16
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelSpacing, data.SliceThickness = [1, 1], 2
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * index]
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    pixels = np.arange(256, dtype="<i2").reshape(16, 16) + index
    data.PixelData = pixels.tobytes() + f"{CANARY} ".encode()
    private = data.private_block(0x0019, "ACME", create=True)
    private.add_new(0x01, "LO", CANARY)
    data.add_new((0x6000, 0x4000), "LT", CANARY)
    data.add_new((0x6000, 0x0022), "LO", CANARY)
    data.add_new((0x5000, 0x2500), "LO", CANARY)
    data.add_new((0x0018, 0x7FFE), "LO", CANARY)  # an attribute of no known name
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            setattr(data, key, value)
    with_file_meta(data).file_meta.SourceApplicationEntityTitle = CANARY
    data.preamble = CANARY.encode().ljust(128, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation():
        data.save_as(path, enforce_file_format=True)
    return path
