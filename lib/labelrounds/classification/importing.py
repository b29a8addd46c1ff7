"""``labelrounds import-labels``: classes that are known already, from a CSV file or from one folder a class.

Everything is checked before anything is written.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from labelrounds.classification.labels import ClassLabel, class_label
from labelrounds.errors import BadInput
from labelrounds.formats import ENDINGS, ending_of
from labelrounds.history import checksum
from labelrounds.names import check_id
from labelrounds.store import StudyStore

_SHOWN = 5


def import_csv(studies: Path, file: Path, multilabel: bool) -> str:
    """Label images of a studies folder as a CSV file with the columns ``image`` and ``label`` says.

    An image is named by its id or its file. Several labels of one stand in several rows, or in one, parted by ``;``.

    Returns:
        a sentence on how many images of each class were labelled.

    Raises:
        BadInput: the first few faulty lines, with their numbers; nothing was labelled.
    """
    store = StudyStore(studies)
    images = set(store.list_images())
    found: dict[str, list[str]] = {}
    faults: list[str] = []
    for line, image, names in _rows(file):
        if image not in images:
            faults.append(f"line {line}: image {image[:100]!r} is not in {studies}")
        elif not names and not multilabel:
            faults.append(f"line {line}: image {image!r} has no label")
        found.setdefault(image, []).extend(names)
    faults += [
        f"image {image!r} has the labels {', '.join(names)}; --multilabel allows several"
        for image, names in found.items()
        if len(set(names)) > 1 and not multilabel
    ]
    _refuse(file, faults)
    return _saved(store, {image: _label(names, multilabel, image) for image, names in found.items()})


def import_folders(studies: Path, folder: Path) -> str:
    """Copy the images of a folder with one folder a class into a studies folder, and label them.

    An image is named as its file, after its class where two classes have a file of that name. One that is there already
    is left as it is.

    Returns:
        a sentence on how many images of each class were labelled.

    Raises:
        BadInput: no class, no image, an unusable name, another image of the same name; nothing was written.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    files = [
        (path, one.name)
        for one in sorted(folder.iterdir())
        if one.is_dir()
        for path in sorted(one.iterdir())
        if path.is_file() and ending_of(path.name)
    ]
    if not files:
        raise BadInput(f"{folder}: no folder of a class holds an image ({', '.join(ENDINGS)})")
    stems = Counter(_stem(path) for path, _ in files)
    targets: dict[Path, tuple[Path, str]] = {}
    faults: list[str] = []
    labels: dict[str, ClassLabel] = {}
    for path, name in files:
        image = check_id(_stem(path) if stems[_stem(path)] == 1 else f"{name}_{_stem(path)}")
        target = studies / f"{image}{ending_of(path.name)}"
        if image in labels:
            faults.append(f"{path}: there are two images of the name {image!r}")
        elif target.is_file() and checksum(target) != checksum(path):
            faults.append(f"{path}: {target} is another image of the same name")
        labels[image] = class_label([name], False, str(path))
        targets[target] = (path, image)
    _refuse(folder, faults)
    studies.mkdir(parents=True, exist_ok=True)
    for target, (path, _) in targets.items():
        if not target.exists():
            shutil.copyfile(path, target)
    store = StudyStore(studies)
    return _saved(store, labels)


def _rows(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the line's number, the image's id and the labels of each row.

    Raises:
        BadInput: not such a file.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            rows = csv.DictReader(content)
            if not {"image", "label"} <= set(rows.fieldnames or ()):
                raise BadInput(f"{file}: its first line is {rows.fieldnames}, expected the columns image and label")
            for row in rows:
                image = (row["image"] or "").strip()
                yield rows.line_num, image.removesuffix(ending_of(image)), _names(row["label"] or "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{file} can't be read as CSV in UTF-8: {error}") from error


def _names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(";") if name.strip()]


def _label(names: list[str], multilabel: bool, image: str) -> ClassLabel:
    return class_label(list(dict.fromkeys(names)), multilabel, image)


def _refuse(where: Path, faults: list[str]) -> None:
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise BadInput(f"{where}: nothing was labelled:\n" + "\n".join(faults[:_SHOWN]) + more)


def _saved(store: StudyStore, labels: dict[str, ClassLabel]) -> str:
    if not labels:
        raise BadInput("there is no image to label")
    store.save_classes(labels)
    counts = Counter(name for label in labels.values() for name in label.classes)
    of_none = sum(1 for label in labels.values() if not label.classes)
    described = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"Labelled {len(labels)} images: {described}" + (f", none of them {of_none}" if of_none else "")


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending_of(path.name))]
