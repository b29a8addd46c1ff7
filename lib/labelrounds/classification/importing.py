"""``labelrounds import-labels``: classes that are known already, from a CSV file or from one folder a class.

Everything is checked before anything is written, and an import that was killed is done again as if for the first time.
Images are known by their content, never by a likeness of names.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelrounds.atomic import copy_file, replacing
from labelrounds.classification.labels import ClassLabel, class_label
from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.formats import ENDINGS, ending_of, format_of, is_dicom
from labelrounds.history import checksum
from labelrounds.names import check_id
from labelrounds.store import CLASSES, StudyStore

_SHOWN = 20
_IMAGE, _LABEL = "image", "label"
_SEGMENTATION = ".seg.nrrd"


def import_csv(studies: Path, file: Path, multilabel: bool) -> str:
    """Label images of a studies folder as a CSV file with the columns ``image`` and ``label`` says.

    An image is named by its id or its file. Several labels of one stand in several rows, or in one, parted by ``;``.

    Returns:
        a sentence on how many images of each class were labelled, and what of the file was not read.

    Raises:
        BadInput: the faulty lines, with their numbers; nothing was labelled.
    """
    if not studies.is_dir():
        raise BadInput(f"{studies} is not a folder; --csv labels the images that lie in one")
    store = StudyStore(studies)
    table = _Table.read(file)
    known = _Names.of(store)
    found: dict[str, dict[str, int]] = {}  # the labels of each image, with the lines that they stand in
    faults: list[str] = []
    for line, image, names in table.rows:
        try:
            image_id = known.image(image)
            _add(found.setdefault(image_id, {}), names, line, multilabel, image)
        except BadInput as error:
            faults.append(f"line {line}: {error}")
    _refuse(file, sorted([*faults, *table.faults], key=_line_of))
    labels = {image: class_label([name for name in names if name], multilabel, image) for image, names in found.items()}
    unread = f"; not read: the columns {', '.join(table.unread)}" if table.unread else ""
    return _saved(store, labels) + unread


def import_folders(studies: Path, folder: Path) -> str:
    """Copy the images of a folder with one folder a class into a studies folder, and label them.

    An image that lies in the studies already, under whatever name, is labelled there. A new one is named as its file,
    after its class where two images have a file of that name.

    Returns:
        a sentence on how many images of each class were labelled, and which files were passed over.

    Raises:
        BadInput: no class, no image, a file that is cut or not what its ending says, an unusable name, another image of
            the same name, an image in two classes; nothing was written.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    if str(studies).startswith(("http:/", "https:/")) or studies.is_file():
        raise BadInput(f"{studies} is not a folder; images are copied into one")
    found = _found_in(folder)
    if not found.images and not found.faults:
        raise BadInput(f"{folder}: no folder of a class holds an image ({', '.join(ENDINGS)})")
    there = _lying_in(studies, {path.stat().st_size for path, _ in found.images.values()})
    new = _named({digest: one for digest, one in found.images.items() if digest not in there.by_content}, found, there)
    _refuse(folder, found.faults)
    studies.mkdir(parents=True, exist_ok=True)
    for digest, image in new.items():
        path, _ = found.images[digest]
        with replacing(studies / f"{image}{_ending(path)}") as target:
            copy_file(path, target)
    labels = {
        image: class_label([name], False, str(path))
        for digest, (path, name) in found.images.items()
        for image in there.by_content.get(digest) or [new[digest]]
    }
    return _saved(StudyStore(studies), labels) + found.passed_over


@dataclass
class _Found:
    """What lies in the folders of the classes.

    Attributes:
        images: by content, the first file that has it and its class.
        faults: why the import can't be done.
        copies: of files that are an image which was found already.
        others: what is no image.
    """

    images: dict[str, tuple[Path, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def passed_over(self) -> str:
        """What is to be said of files that were not copied."""
        copies = f"; {len(self.copies)} more are copies, such as {self.copies[0]}" if self.copies else ""
        others = f"; passed over {len(self.others)} that are no images, such as {self.others[0]}" if self.others else ""
        return copies + others

    def add(self, path: Path, name: str) -> None:
        """Take a file of a class."""
        if path.name.startswith("."):
            return
        try:
            if not path.is_file() or not _ending(path) or path.name.lower().endswith(_SEGMENTATION):
                self.others.append(path)
                return
            format_of(path)
            digest = checksum(path)
        except (LabelRoundsError, OSError) as error:
            self.faults.append(f"{path}: {error}")
            return
        first, its = self.images.setdefault(digest, (path, name))
        if its != name:
            self.faults.append(f"{path}: the same image as {first}, which is of another class")
        elif first != path:
            self.copies.append(path)


def _found_in(folder: Path) -> _Found:
    found = _Found()
    for one in sorted(folder.iterdir()):
        if not one.is_dir():
            found.others.extend([] if one.name.startswith(".") else [one])
        elif not one.name.startswith("."):  # as what notebooks and archives leave there
            (name,) = class_label([one.name], False, str(one)).classes
            for path in sorted(one.iterdir()):
                found.add(path, name)
    return found


@dataclass(frozen=True)
class _Lying:
    """The images of a studies folder: file by id, and ids by content as far as that is asked for."""

    files: Mapping[str, Path]
    by_content: Mapping[str, list[str]]


def _lying_in(studies: Path, sizes: set[int]) -> _Lying:
    """Return the images that lie in a studies folder; only of those of some sizes the content is looked at."""
    if not studies.is_dir():
        return _Lying({}, {})
    store = StudyStore(studies)
    files = {image: Path(store.get_image_uri(image)) for image in store.list_images()}
    by_content: dict[str, list[str]] = {}
    for image, path in files.items():
        if path.is_file() and path.stat().st_size in sizes:
            by_content.setdefault(checksum(path), []).append(image)
    return _Lying(files, by_content)


def _named(images: Mapping[str, tuple[Path, str]], found: _Found, there: _Lying) -> dict[str, str]:
    """Return an id for each new image, by its content; what has none is a fault."""
    stems = Counter(_stem(path) for path, _ in found.images.values())
    named: dict[str, str] = {}
    taken: dict[str, Path] = dict(there.files)
    for digest, (path, name) in images.items():
        stem = _stem(path)
        try:
            image = check_id(stem if stems[stem] == 1 else f"{name}_{stem}")
        except BadInput as error:
            found.faults.append(f"{path}: {error}")
            continue
        if image in taken:
            found.faults.append(f"{path}: {taken[image]} is another image of the same name, {image!r}; rename one")
        taken.setdefault(image, path)
        named[digest] = image
    return named


@dataclass(frozen=True)
class _Table:
    """A CSV file: the line's number, the image and the labels of each row that has them; the faults of the others."""

    rows: list[tuple[int, str, list[str]]]
    faults: list[str]
    unread: list[str]

    @classmethod
    def read(cls, file: Path) -> "_Table":
        """Read a file.

        Raises:
            BadInput: not such a file.
        """
        try:
            with file.open(newline="", encoding="utf-8-sig") as content:
                # Else a quotation mark that is never closed would swallow the rest of the file.
                return cls._of(file, csv.reader(content, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"{file} can't be read as CSV in UTF-8: {error}") from error

    @classmethod
    def _of(cls, file: Path, lines: Any) -> "_Table":
        first: list[str] = next(lines, [])
        header = [cell.strip().lower() for cell in first]
        if header.count(_IMAGE) != 1 or header.count(_LABEL) != 1:
            raise BadInput(f"{file}: its first line is {first}, expected the columns image and label, each once")
        image, label = header.index(_IMAGE), header.index(_LABEL)
        table = cls([], [], [name for name in first if name.strip().lower() not in (_IMAGE, _LABEL)])
        for cells in lines:
            line = lines.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) <= max(image, label):
                table.faults.append(f"line {line}: {len(cells)} cell(s), none under {header[len(cells)]!r}")
            elif any(cell.strip() for cell in cells[len(header) :]):
                more = f"{len(cells)} cells under {len(header)} columns"
                table.faults.append(
                    f'line {line}: {more}; a name with a comma stands in ", several names are parted by ;'
                )
            else:
                names = [name.strip() for name in cells[label].split(";") if name.strip()]
                table.rows.append((line, cells[image].strip(), names))
        return table


@dataclass(frozen=True)
class _Names:
    """The images of a studies folder by their ids and by their files' names."""

    ids: Mapping[str, str]
    files: Mapping[str, str]

    @classmethod
    def of(cls, store: StudyStore) -> "_Names":
        """Take those of a store."""
        ids = {image: Path(store.get_image_uri(image)).name for image in store.list_images()}
        return cls(ids, {file: image for image, file in ids.items()})

    def image(self, name: str) -> str:
        """Return the id of the image that is meant.

        Raises:
            BadInput: none, or two.
        """
        meant = {name} & self.ids.keys() | ({self.files[name]} if name in self.files else set())
        if len(meant) == 1:
            return meant.pop()
        if meant:
            raise BadInput(f"{name!r} is the id of {self.ids[name]} and the file of another image; name their files")
        stem = name[: len(name) - len(ending_of(name))]
        near = f"; there is {self.ids[stem]}" if stem in self.ids else ""
        raise BadInput(f"image {name[:100]!r} is not in the studies folder{near}")


def _add(known: dict[str, int], names: list[str], line: int, multilabel: bool, image: str) -> None:
    """Add a row's labels to those of its image; "" stands for none.

    Raises:
        BadInput: an unusable one, more than there may be, or others than another row says.
    """
    if not multilabel and len(names) != 1:
        what = f"has {len(names)} labels, {'; '.join(names)}; --multilabel allows several" if names else "has no label"
        raise BadInput(f"image {image!r} {what}")
    class_label(list(dict.fromkeys(names)), multilabel, f"image {image!r}")
    for other, its_line in known.items():
        if (not multilabel and names != [other]) or bool(names) != bool(other):
            allows = "" if multilabel else "; --multilabel allows several"
            mine, its = "; ".join(names) or "nothing", other or "nothing"
            raise BadInput(f"image {image!r} is {mine}, line {its_line} says {its}{allows}")
    for name in names or [""]:
        known.setdefault(name, line)


def _line_of(fault: str) -> int:
    return int(fault.removeprefix("line ").partition(":")[0])


def _refuse(where: Path, faults: list[str]) -> None:
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise BadInput(f"{where}: nothing was labelled:\n" + "\n".join(faults[:_SHOWN]) + more)


def _saved(store: StudyStore, labels: dict[str, ClassLabel]) -> str:
    if not labels:
        raise BadInput("there is no image to label")
    replaced = sum(
        _differs(store.get_label_info(image, CLASSES).get("classes"), labels[image])
        for image in labels.keys() & set(store.get_labeled_images(CLASSES))
    )
    store.save_classes(labels)
    counts = Counter(name for label in labels.values() for name in label.classes)
    of_none = sum(1 for label in labels.values() if not label.classes)
    described = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    none = f", none of them {of_none}" if of_none else ""
    former = f"; {replaced} had other classes, which stay in the history" if replaced else ""
    return f"Labelled {len(labels)} images: {described}{none}{former}"


def _differs(before: object, label: ClassLabel) -> bool:
    return isinstance(before, list) and set(before) != set(label.classes)


def _ending(path: Path) -> str:
    """Return the ending that a file has in the studies, "" where it is no image."""
    return ending_of(path.name) or (".dcm" if path.name.upper() != "DICOMDIR" and is_dicom(path) else "")


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending_of(path.name))]
