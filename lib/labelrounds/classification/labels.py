"""What classes a whole image is of, as a human says: a small JSON file in the datastore, beside any label map.

``{"label": "pneumonia"}`` names the one class of an image; ``{"labels": ["effusion", "mass"]}`` any number, for models
with ``multilabel: true``, and ``[]`` that it is of none.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labelrounds.errors import BadInput

_MOST_BYTES = 64 * 1024
_MOST_CLASSES, _LONGEST = 255, 255
# As a model's answer is shown in Slicer, and comes back from there: "pneumonia 93 %".
_PERCENT = re.compile(r" +\d{1,3} ?%$")


@dataclass(frozen=True)
class ClassLabel:
    """The classes of an image.

    Attributes:
        classes: their names, each once.
        several: whether it is a list, of none, one or several; else it is exactly one.
    """

    classes: tuple[str, ...]
    several: bool = False

    def as_json(self) -> str:
        """Return the file's content."""
        content = {"labels": list(self.classes)} if self.several else {"label": self.classes[0]}
        return json.dumps(content, ensure_ascii=False)


def read_class_label(path: Path) -> ClassLabel:
    """Read a class label.

    Raises:
        BadInput: a large file, another content than the two that are allowed, an unusable name.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise BadInput(f"{path.name}: over {_MOST_BYTES} bytes; a class label is as small as {{'label': 'pneumonia'}}")
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path.name}: not JSON in UTF-8: {error}") from error
    if not isinstance(found, dict) or list(found) not in (["label"], ["labels"]):
        raise BadInput(f"{path.name}: {str(found)[:100]!r} is neither {{'label': NAME}} nor {{'labels': [NAME, ...]}}")
    return class_label([found["label"]] if "label" in found else found["labels"], "labels" in found, path.name)


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice in {', '.join(key for key, _ in pairs)}")
    return found


def class_label(names: object, several: bool, where: str) -> ClassLabel:
    """Return a label of such classes.

    Args:
        names: what should be their list.
        several: whether it may be any number.
        where: it stands, for messages.

    Raises:
        BadInput: no list, an unusable name, a name twice.
    """
    if not isinstance(names, list) or len(names) > _MOST_CLASSES:
        raise BadInput(f"{where}: labels {str(names)[:100]!r} is not a list of at most {_MOST_CLASSES} names")
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST or not name.isprintable():
            raise BadInput(f"{where}: class {str(name)[:100]!r} is not a name of 1 to {_LONGEST} printable characters")
    classes = tuple(name.strip() for name in names)
    if len(set(classes)) < len(classes):
        raise BadInput(f"{where}: a class stands twice in {', '.join(classes)}")
    return ClassLabel(classes, several)


def check_known(label: ClassLabel, known: Sequence[str], several: Sequence[str], where: str) -> None:
    """Refuse classes that no model of the app has, and none or several at once of models that take one.

    Args:
        label: the classes.
        known: those of the app's models; empty switches the check off.
        several: those of which an image may have any number.
        where: the label stands, for messages.

    Raises:
        BadInput: which class, and what is allowed.
    """
    unknown = [name for name in label.classes if known and name not in known]
    if unknown:
        raise BadInput(f"{where}: class {unknown[0]!r} is not one of {', '.join(known)}")
    if known and not label.classes and not several:
        raise BadInput(f"{where}: an image is of one class of {', '.join(known)}; got none")
    single = [name for name in label.classes if known and name not in several]
    if len(label.classes) > 1 and single:
        raise BadInput(f"{where}: an image is of one class of {', '.join(known)}; got {', '.join(label.classes)}")


def named_in_slicer(names: Sequence[str], known: Sequence[str]) -> list[str] | None:
    """Return the classes that the segments of a submitted segmentation name; None where one of them is no class."""
    found = [_PERCENT.sub("", name.strip()) for name in names]
    return found if found and all(name in known for name in found) else None


def check_named(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse a segmentation without a voxel of which no segment's name says anything.

    Args:
        names: of its segments.
        known: the classes and labels of the app's models.
        where: it stands, for messages.

    Raises:
        BadInput: the name that is none of them, and what is allowed.
    """
    unknown = [name for name in names if _PERCENT.sub("", name.strip()) not in known]
    if unknown:
        raise BadInput(
            f"{where}: nothing is segmented in it, and its segment {unknown[0][:100]!r} is not one of"
            f" {', '.join(known)}"
        )
