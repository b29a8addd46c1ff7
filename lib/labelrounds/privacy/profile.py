"""The Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E, applied to a dataset.

Which attribute is to be removed, emptied, replaced or mapped says table E.1-1, which the package ``dicom-anonymizer``
carries as data. What is done beyond it is on the safe side: the same holds inside every sequence; private attributes,
those of no known name and whole overlay and curve groups go; names of persons, dates and UIDs that the table has not
are treated as if it had. Where the table leaves a choice that depends on the kind of object, the one that keeps the
object valid is taken: a dummy rather than nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag

import labelrounds
from labelrounds.privacy.pseudonyms import Pseudonyms

EDITION = "2026c"
REMOVE, EMPTY, REPLACE, MAP, KEEP = "removed", "emptied", "replaced", "mapped", "kept"
_COLUMNS = {
    REPLACE: ("D_TAGS", "Z_D_TAGS", "X_D_TAGS", "X_Z_D_TAGS"),
    EMPTY: ("Z_TAGS", "X_Z_TAGS"),
    REMOVE: ("X_TAGS",),
    MAP: ("U_TAGS", "X_Z_U_STAR_TAGS"),
}
_OVERLAYS_AND_CURVES = (0x5000, 0x6000)
# UIDs that name a coding scheme or a mapping resource, and nobody's image.
_NAMES_OF_CODES = ("CodingSchemeUID", "ContextUID", "MappingResourceUID", "ContextGroupExtensionCreatorUID")
_DATES = ("DA", "DT", "TM")
_FREE_TEXT = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
_DUMMIES: dict[str, Any] = {
    **dict.fromkeys((*_FREE_TEXT, "AE", "CS"), "REMOVED"),
    **{"AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "UR": "http://removed.invalid"},
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"), 0),
}
_BIRTH = ("PatientBirthDate", "PatientBirthTime")


@dataclass
class Changes:
    """What was done to a dataset: the keywords of attributes by what became of them, never their values."""

    done: dict[str, set[str]] = field(default_factory=lambda: {REMOVE: set(), EMPTY: set(), REPLACE: set(), MAP: set()})
    private: int = 0

    def note(self, action: str, tag: BaseTag) -> None:
        """Note an attribute."""
        if tag.is_private:
            self.private += 1
        else:
            self.done[action].add(keyword_for_tag(tag) or str(tag))


@dataclass(frozen=True)
class Rules:
    """How one patient's datasets are treated.

    Attributes:
        pseudonyms: what takes the place of names.
        days: by how many days dates move back; None removes them as the profile says.
    """

    pseudonyms: Pseudonyms
    days: int | None


@cache
def table() -> dict[tuple[int, int], str]:
    """Return what table E.1-1 says of each attribute, without those of repeating groups."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    columns = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")
    listed = ((tag, action) for action, names in _COLUMNS.items() for name in names for tag in columns[name])
    return {tag: action for tag, action in listed if len(tag) == 2}


def action_on(tag: BaseTag, kind: str) -> str:
    """Return what becomes of an attribute of a value representation (``kind``)."""
    if tag.is_private or tag.group & 0xFF00 in _OVERLAYS_AND_CURVES or not dictionary_has_tag(tag):
        return REMOVE
    said = table().get((tag.group, tag.element))
    if said is not None:
        return said
    if kind == "PN" or kind in _DATES:
        return EMPTY
    return MAP if kind == "UI" and keyword_for_tag(tag) not in _NAMES_OF_CODES else KEEP


def identity_of(dataset: Dataset) -> str:
    """Return whose image it is, to be replaced by a pseudonym; "" where it does not say."""
    patient, issuer = (str(dataset.get(key) or "").strip() for key in ("PatientID", "IssuerOfPatientID"))
    return f"{patient}\0{issuer}" if patient else str(dataset.get("PatientName") or "").strip()


def deidentify(dataset: Dataset, pseudonyms: Pseudonyms, shift_dates: bool) -> Changes:
    """Apply the profile to a dataset, in place.

    The patient's name and id become one pseudonym, so that a patient's images still belong together.

    Args:
        dataset: without its file meta information, which is to be written anew.
        pseudonyms: of the run's key.
        shift_dates: move dates back by days that are the patient's own (the option "Retain Longitudinal Temporal
            Information With Modified Dates") in place of emptying them; a date of birth goes in any case.

    Raises:
        Exception: what pydicom raises on a damaged dataset, of many kinds; its text may hold values.
    """
    changes = Changes()
    with pydicom_config.disable_value_validation():  # its warnings quote the values
        identity = identity_of(dataset)
        rules = Rules(pseudonyms, pseudonyms.days(identity) if shift_dates else None)
        _clean(dataset, rules, changes)
        pseudonym = pseudonyms.patient(identity)
        dataset.PatientID, dataset.PatientName = pseudonym, pseudonym
        _declare(dataset, shift_dates)
    return changes


def _clean(dataset: Dataset, rules: Rules, changes: Changes, dummy_texts: bool = False) -> None:
    for tag in list(dataset.keys()):
        if tag.element == 0:  # a group's length, which is written anew
            del dataset[tag]
            continue
        action = action_on(tag, "")
        if action != REMOVE:
            element = dataset[tag]
            action = action_on(tag, element.VR)
            if dummy_texts and action == KEEP and element.VR in _FREE_TEXT:
                action = REPLACE
            action = _act(element, action, rules, changes, dummy_texts)
        if action == REMOVE:
            del dataset[tag]
        if action != KEEP:
            changes.note(action, tag)


def _act(element: Any, action: str, rules: Rules, changes: Changes, dummy_texts: bool) -> str:
    """Change an element and return what became of it; one that is to be removed is left to the caller."""
    if element.is_empty and action != REMOVE:
        return KEEP
    if element.VR in _DATES and rules.days is not None and element.keyword not in _BIRTH:
        return _shift(element, rules.days)
    if element.VR == "SQ" and action in (KEEP, REPLACE, MAP):
        for item in element.value:
            _clean(item, rules, changes, dummy_texts or action == REPLACE)
        return KEEP if action == KEEP else REPLACE
    if action == EMPTY:
        element.clear()
    elif action == REPLACE and element.VR != "UI":
        element.value = _DUMMIES.get(element.VR, b"\0\0")
    elif action in (MAP, REPLACE):
        return _map(element, rules.pseudonyms)
    return action


def _map(element: Any, pseudonyms: Pseudonyms) -> str:
    before = _values(element)
    after = [pseudonyms.uid(uid) for uid in before]
    element.value = after if len(after) > 1 else after[0]
    return MAP if after != before else KEEP


def _shift(element: Any, days: int) -> str:
    """Move a date back, or the date of a time stamp; what is no whole date is emptied. Times of day stay."""
    if element.VR == "TM":
        return KEEP
    try:
        moved = [_earlier(text, days) for text in _values(element)]
    except (ValueError, OverflowError):
        element.clear()
        return EMPTY
    element.value = moved if len(moved) > 1 else moved[0]
    return REPLACE


def _values(element: Any) -> list[str]:
    return [element.value] if isinstance(element.value, str) else [str(value) for value in element.value]


def _earlier(text: str, days: int) -> str:
    before = datetime.strptime(text[:8], "%Y%m%d") - timedelta(days=days)
    return f"{before:%Y%m%d}".rjust(8, "0") + text[8:]


def _declare(dataset: Dataset, shift_dates: bool) -> None:
    """Say in the dataset that it was de-identified, and how (PS3.15 E.2, codes of PS3.16 CID 7050)."""
    codes = [("113100", "Basic Application Confidentiality Profile")]
    if shift_dates:
        codes.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [f"LabelRounds {labelrounds.__version__}", f"PS3.15 {EDITION} table E.1-1"]
    dataset.DeidentificationMethodCodeSequence = Items([_code(*code) for code in codes])
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if shift_dates else "REMOVED"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
