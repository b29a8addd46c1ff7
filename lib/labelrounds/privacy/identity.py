"""Whether a DICOM image still says whose it is, for a server that refuses such (``LABELROUNDS_REFUSE_IDENTIFIED``).

Messages name the attribute, never its value. Formats other than DICOM have no attribute that is meant for a name.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from pydicom.sequence import Sequence as Items

from labelrounds.errors import BadInput
from labelrounds.settings import server_settings

# A patient's own. Not PatientID, in which a pseudonym may stand that keeps a patient's images together.
IDENTIFYING = (
    "PatientName",
    "PatientBirthDate",
    "OtherPatientNames",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientTelecomInformation",
    "MedicalRecordLocator",
)
_DECLARED = "PatientIdentityRemoved"


class Identified(BadInput):
    """An image that still says whose it is."""


def refusing() -> bool:
    """Tell whether this server refuses such images."""
    return server_settings().refuse_identified


def check_folder_or_file(path: Path) -> None:
    """Refuse an image, a file or the folder of a series, that still says whose it is, where the server is told to.

    Raises:
        Identified: the attribute is named.
        BadInput: a damaged header, of which nothing can be said.
    """
    if refusing():
        for file in sorted(path.iterdir()) if path.is_dir() else (path,):
            if found := attribute_in_file(file):
                raise Identified(_told(path.name, found))


def check_upload(stream: IO[bytes], name: str) -> None:
    """Do as `check_folder_or_file` for a file that is being sent, which is left at its beginning."""
    if refusing():
        found = _attribute_in_stream(stream, name)
        stream.seek(0)
        if found:
            raise Identified(_told(name, found))


def check_dataset(dataset: Any, name: str) -> None:
    """Do as `check_folder_or_file` for what a DICOMweb server says of an image."""
    found = attribute_in(dataset) if refusing() else None
    if found:
        raise Identified(_told(name, found))


def check_notes(notes: Iterable[str], field: str) -> None:
    """Do as `check_folder_or_file` for the keys of what a client notes about an image."""
    found = sorted(set(notes) & set(IDENTIFYING)) if refusing() else []
    if found:
        raise Identified(f"{field}: {found[0]} is not kept: this server keeps nothing that says whose an image is")


def attribute_in_file(file: Path) -> str | None:
    """Return the first attribute of a DICOM file that says whose image it is; None also for other files.

    Raises:
        BadInput: the header is damaged, so that nothing can be said.
    """
    if not file.is_file():
        return None
    stat = file.stat()
    return _attribute_in_file(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=50_000)  # a folder is looked through again whenever something in it has changed
def _attribute_in_file(file: Path, _changed: int, _size: int) -> str | None:
    with file.open("rb") as stream:
        return _attribute_in_stream(stream, file.name)


def _attribute_in_stream(stream: IO[bytes], name: str) -> str | None:
    import pydicom

    if stream.read(132)[128:] != b"DICM":
        return None
    stream.seek(0)
    tags = [*IDENTIFYING, _DECLARED, "SpecificCharacterSet"]
    try:
        with pydicom.config.disable_value_validation():  # its warnings quote the values
            return attribute_in(pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags))
    except Exception as error:  # of many kinds, with the values in their texts
        kind = type(error).__name__
        raise BadInput(f"{name}: a damaged DICOM header ({kind}), which may say whose image it is") from error


def attribute_in(dataset: Any) -> str | None:
    """Return the first attribute of a dataset that says whose image it is, unless it is declared de-identified."""
    if str(dataset.get(_DECLARED) or "").strip().upper() == "YES":
        return None
    return next((key for key in IDENTIFYING if _has_value(dataset.get(key))), None)


def _has_value(value: Any) -> bool:
    if isinstance(value, Items):
        return len(value) > 0
    return value is not None and bool(str(value).strip(" ^=[]'\""))


def _told(name: str, attribute: str) -> str:
    return (
        f"{name}: {attribute} is filled, and PatientIdentityRemoved is not YES; this server refuses images that say"
        " whose they are: de-identify them first, as with `labelrounds deidentify`"
    )
