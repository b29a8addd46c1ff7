"""What the voxel values of a submitted label mean, and whether it fits its image.

3D Slicer exports the segments that it lists in ``label_info`` as values 1, 2, 3 in that order. The ``idx`` beside a
name counts background and scribbles too, which are not exported, and so is not the value: names go by their place in
the list. A segmentation file (``.seg.nrrd``) says itself which value is which segment. A label without a list, such as
a file dropped into the folder, has no names of its own, unless it is a segmentation file: each model reads it in the
order of its own labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.errors import BadInput
from labelrounds.geometry import Affine, onto_grid
from labelrounds.reading import Image, read_geometry, read_label
from labelrounds.segmentations import checked_name

_SEGMENTS = ".seg.nrrd"


@dataclass(frozen=True)
class Meaning:
    """What the values of a label map stand for.

    Attributes:
        values: Name to voxel value, also of labels without a voxel. None where nobody has named them: they are then
            1, 2, 3 in the order of the labels of whichever model is trained on them.
        unknown: Those names that no model of the app has.
    """

    values: dict[str, int] | None
    unknown: tuple[str, ...] = ()


def check_label(label: Path, image: Path, label_info: object, known: Sequence[str]) -> Meaning:
    """Check a submitted label against its image and say what its values mean.

    Args:
        label: NIfTI or NRRD, on the grid of the image within 1e-3 mm.
        image: The image, in any format that is read.
        label_info: What the client sent: ``[{"name": ...}, ...]`` in the order of the values, or None.
        known: The labels of the app's models, in their order; empty switches the check of names off.

    Raises:
        BadInput: another grid, values without a name, no known name among the labels that have voxels, a list that
            is none; besides what `read_label` raises.
    """
    names = _names(label_info)
    read = read_label(label)
    check_grid(read, image, label.name)
    present = [int(value) for value in np.flatnonzero(np.bincount(read.array.ravel(order="K"), minlength=256)) if value]
    if names is None and read.segments is None:
        if known:
            _check_values(by_position(known), present, label.name)
        return Meaning(None)
    values = by_position(names or ()) if read.segments is None else dict(read.segments)
    _check_values(values, present, label.name)
    _check_known(values, present, known, label.name)
    return Meaning(values, tuple(name for name in values if known and name not in known))


def check_prediction(label: Path, image: Path, label_names: object) -> Meaning:
    """Check a label that a model made: the grid of the image, and whole numbers.

    Args:
        label: NIfTI or NRRD.
        image: The image.
        label_names: Name to value, as models report it; anything else counts as none.

    Raises:
        BadInput: another grid; besides what `read_label` raises.
    """
    check_grid(read_label(label), image, label.name)
    if not isinstance(label_names, Mapping):
        return Meaning({})
    return Meaning({str(name): value for name, value in label_names.items() if isinstance(value, int)})


def check_grid(label: Image, image: Path, name: str) -> None:
    """Refuse a label whose voxels are not those of its image; of a picture only the size counts.

    Raises:
        BadInput: see `on_grid_of`.
    """
    geometry = read_geometry(image)
    on_grid_of(label, geometry.shape, geometry.affine, geometry.is_flat, name)


def on_grid_of(
    label: Image, shape: tuple[int, int, int], affine: Affine, is_flat: bool, name: str
) -> NDArray[np.uint8]:
    """Return the label's voxels ``(X, Y, Z)`` in the order of its image's.

    Raises:
        BadInput: another size or place, `labelrounds.geometry.onto_grid` says which.
    """
    try:
        # A picture has no geometry of its own, so there is none to compare.
        return onto_grid(label.array[0], affine if is_flat else label.affine, shape, affine)
    except BadInput as error:
        # Slicer writes a segmentation file finer than its image once an empty segment is in it.
        hint = (
            '; set "File Extension" to .nii.gz in Slicer\'s settings of MONAI Label' if name.endswith(_SEGMENTS) else ""
        )
        raise BadInput(f"{name}: {error}{hint}") from error


def by_position(known: Sequence[str]) -> dict[str, int]:
    """Return the values of a label map that came without a list of names."""
    return {name: value for value, name in enumerate(known, start=1)}


def _names(label_info: object) -> list[str] | None:
    if label_info is None:
        return None
    if not isinstance(label_info, list):
        raise BadInput(f"label_info: {_short(label_info)} is not a list of {{'name': ...}}")
    names = [_name(entry) for entry in label_info]
    if len(names) > 255:
        raise BadInput(f"label_info: {len(names)} labels; at most 255 fit into a label map")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"label_info: {', '.join(twice)} stands there twice; give each segment its own name")
    return names


def _name(entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return checked_name(name, f"label_info: {_short(entry)}")


def _check_values(values: Mapping[str, int], present: list[int], name: str) -> None:
    allowed = {0, *values.values()}
    strange = [value for value in present if value not in allowed]
    if strange:
        named = ", ".join(f"{value} {label}" for label, value in values.items()) or "none"
        raise BadInput(f"{name}: has the values {_short(strange)}; allowed are 0 and the labels listed: {named}")


def _check_known(values: Mapping[str, int], present: list[int], known: Sequence[str], name: str) -> None:
    drawn = [label for label, value in values.items() if value in present]
    if known and drawn and not set(drawn) & set(known):
        raise BadInput(
            f"{name}: no model knows {', '.join(drawn)}, so it could not be learnt; known are {', '.join(known)}. "
            "A segment keeps its model's name"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
