"""What a studies folder holds, in the figures that a model is planned from.

Each image is read as training reads it, one at a time, and only its figures are kept. Axes are those of the network's
grid: left-right, posterior-anterior, inferior-superior. What cannot be used is named with the reason, as in training.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from labelrounds import dicom
from labelrounds.cases import label_of
from labelrounds.config import ModelConfig
from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.formats import PICTURES, format_of, header_of
from labelrounds.reading import MAX_VOXELS, Image, read_image
from labelrounds.store import LabelledCase, StudyStore
from labelrounds.transforms import Grid

logger = logging.getLogger(__name__)

# As many intensities of each case as nnU-Net's fingerprint takes, so that large patients count like small ones.
_SAMPLES = 10_000
_AIR_HU = (-1100, -900)
_AIR_SHARE = 0.005
_NAMED_MODALITIES = {
    "CT": {"ct", "cta", "cect", "ncct"},
    "MR": {"mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "dwi", "adc", "swi"},
    "PT": {"pet"},
}


@dataclass(frozen=True)
class ImageFacts:
    """The figures of one image.

    Attributes:
        image_id: its name in the store.
        shape: voxels along the network's axes.
        spacing_mm: size of a voxel along them; 1 for a picture, which has none.
        channels: image channels; 1 for a colour picture whose channels are all equal.
        is_flat: a picture (PNG, JPEG, TIFF).
        modality: as DICOM names it, "" where nothing tells.
        intensities: a sample of the first channel's values, of the labelled voxels where there are any.
        label_voxels: label to the number of its voxels; None without a usable label.
        components: label to the number of its connected parts, of the labels that have voxels.
    """

    image_id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    channels: int
    is_flat: bool
    modality: str
    intensities: NDArray[np.float32]
    label_voxels: dict[str, int] | None
    components: dict[str, int]

    @property
    def has_foreground(self) -> bool:
        """True where at least one voxel of a label is known."""
        return bool(self.components)


@dataclass(frozen=True)
class Fingerprint:
    """The figures of a studies folder.

    Attributes:
        labels: the labels to plan for, in the order of their values.
        images: the images that can be read and have the same channels.
        skipped: the other images' ids and the reason.
        unusable_labels: ids of images whose label is not usable, and the reason.
        warnings: what the store left out before, as labels that belong to no image.
    """

    labels: tuple[str, ...]
    images: tuple[ImageFacts, ...]
    skipped: dict[str, str]
    unusable_labels: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Image channels of the model; colours and grey pictures together are read as grey."""
        return min(image.channels for image in self.images)

    @property
    def is_flat(self) -> bool:
        """True where all images are pictures."""
        return all(image.is_flat for image in self.images)

    @property
    def labelled(self) -> tuple[ImageFacts, ...]:
        """The images with a usable label."""
        return tuple(image for image in self.images if image.label_voxels is not None)

    @property
    def modalities(self) -> list[str]:
        """The modalities there are, the most frequent first."""
        return [modality for modality, _ in Counter(image.modality for image in self.images).most_common()]

    @property
    def spacings_mm(self) -> NDArray[np.float64]:
        """``(N, 3)``."""
        return np.array([image.spacing_mm for image in self.images])

    @property
    def shapes(self) -> NDArray[np.int64]:
        """``(N, 3)``."""
        return np.array([image.shape for image in self.images])

    def intensity_percentiles(self, percentiles: Sequence[float]) -> tuple[list[float], bool]:
        """Return percentiles of the first channel, and whether they are of the labelled voxels alone."""
        drawn = [image.intensities for image in self.images if image.has_foreground]
        pooled = np.concatenate(drawn or [image.intensities for image in self.images])
        return [float(value) for value in np.percentile(pooled, percentiles)], bool(drawn)

    def foreground_share(self) -> float | None:
        """Return the share of all voxels that have a label, over the labelled images; None where nothing has one."""
        drawn = [image for image in self.labelled if image.has_foreground]
        if not drawn:
            return None
        return sum(sum((image.label_voxels or {}).values()) for image in drawn) / sum(
            math.prod(image.shape) for image in drawn
        )

    def label_sizes_mm3(self) -> dict[str, float]:
        """Return the median volume of each label over the images in which it occurs; 0 where it never does."""
        sizes: dict[str, list[float]] = {label: [0.0] for label in self.labels}
        for label in self.labels:
            drawn = [
                (image.label_voxels or {})[label] * math.prod(image.spacing_mm)
                for image in self.images
                if label in image.components
            ]
            sizes[label] = drawn or [0.0]
        return {label: float(np.median(values)) for label, values in sizes.items()}


def take_fingerprint(
    store: StudyStore, labels: Sequence[str], watched: Callable[[Sequence[str]], Iterable[str]] = iter
) -> Fingerprint:
    """Read every image of a store, with its label where it has one.

    Args:
        store: the studies.
        labels: the names of the labels, in the order of their values.
        watched: wraps the images' ids, to show how far the reading is.

    Raises:
        BadInput: wrong names of labels, no image, no readable image, or labels in the studies of which none has the
            names that are asked for.
    """
    config = _reading_config(labels)
    ids = store.list_images()
    if not ids:
        raise BadInput(
            "no image in the studies folder: images are NIfTI, NRRD, DICOM, PNG, JPEG or TIFF files"
            " in the folder itself (of a DICOM series in a subfolder, make a NIfTI or NRRD file)"
        )
    cases = {case.image_id: case for case in store.training_items()}
    images: list[ImageFacts] = []
    skipped: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for image_id in watched(ids):
        try:
            images.append(_read_facts(store, image_id, cases.get(image_id), config, unusable))
        except (LabelRoundsError, OSError) as error:
            logger.info("Skip %s: %s", image_id, error)
            skipped[image_id] = str(error)
    images = _of_equal_channels(images, skipped)
    if not images:
        first, reason = next(iter(skipped.items()))
        raise BadInput(f"none of the {len(ids)} images can be read; the first, {first}: {reason}")
    _check_labels(images, unusable, cases, labels)
    return Fingerprint(tuple(labels), tuple(images), skipped, unusable, tuple(store.warnings))


def _reading_config(labels: Sequence[str]) -> ModelConfig:
    """Return a model that reads images and labels as the planned one will: no resampling, its values for its labels."""
    try:
        return ModelConfig.model_validate(
            {
                "name": "planned",
                "description": "",
                "labels": tuple(labels),
                "intensity": {"kind": "zscore"},
                "network": {"name": "unet"},
                "patch_size": (16, 16, 16),
            }
        )
    except ValidationError as error:
        reasons = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        raise BadInput(f"labels {','.join(labels)[:200]!r}: {reasons}") from error


def _read_facts(
    store: StudyStore, image_id: str, case: LabelledCase | None, config: ModelConfig, unusable: dict[str, str]
) -> ImageFacts:
    path = Path(store.get_image_uri(image_id))
    image = read_image(path, channels=_channels_in(path))
    label = None
    if case is not None:
        try:
            label = label_of(case, image, config)
        except (LabelRoundsError, OSError) as error:
            unusable[image_id] = str(error)
    grid = Grid.of(image, config)
    spacing = [image.spacing_mm[axis] for axis in grid.axes]
    counts, parts = _count(label, config) if label is not None else (None, {})
    return ImageFacts(
        image_id=image_id,
        shape=grid.oriented_shape,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        channels=_useful_channels(image),
        is_flat=image.is_flat,
        modality=str(store.get_image_info(image_id).get("Modality", "")) or _modality(path, image),
        intensities=_sample(image.array[0], label if parts else None),
        label_voxels=counts,
        components=parts,
    )


def _channels_in(path: Path) -> int | None:
    """Return how many channels a volume has, so that all are read; None for what is read with its colours."""
    kind = format_of(path)
    return None if kind == "dicom" or kind in PICTURES else header_of(path, kind, MAX_VOXELS).channels


def _useful_channels(image: Image) -> int:
    """Return the image's channels; 1 for grey that is stored as colours, and for colours with transparency."""
    channels = image.array.shape[0]
    if image.source not in ("nifti", "nrrd") and channels > 1:
        grey = all(np.array_equal(image.array[0], image.array[index]) for index in range(1, 3))
        return 1 if grey or channels != 3 else 3
    return channels


def _count(label: NDArray[np.uint8], config: ModelConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Return the voxels and, of the labels that have some, the connected parts."""
    voxels = np.bincount(label.ravel(), minlength=256)
    boxes = ndimage.find_objects(label, max_label=len(config.labels))
    parts = {
        name: int(ndimage.label(label[boxes[value - 1]] == value)[1])
        for name, value in config.label_values.items()
        if voxels[value]
    }
    return {name: int(voxels[value]) for name, value in config.label_values.items()}, parts


def _sample(channel: NDArray, label: NDArray[np.uint8] | None) -> NDArray[np.float32]:
    """Return at most ``_SAMPLES`` intensities, of the labelled voxels where there is a label."""
    values = (channel if label is None else channel[label > 0]).ravel()
    if values.size > _SAMPLES:
        values = values[np.random.default_rng(0).integers(values.size, size=_SAMPLES)]
    return values.astype(np.float32)


def _modality(path: Path, image: Image) -> str:
    """Return what DICOM, the file's name or, for CT, the values tell."""
    if image.source == "dicom":
        return dicom.modality(path)
    words = set(re.split(r"[^a-z0-9]+", path.name.lower()))
    named = [modality for modality, tokens in _NAMED_MODALITIES.items() if tokens & words]
    if len(named) == 1:
        return named[0]
    return "CT" if not image.is_flat and _is_hounsfield(image.array[0]) else ""


def _is_hounsfield(channel: NDArray) -> bool:
    """Tell whether values are whole numbers of which a share lies where air does in CT."""
    values = _sample(channel, None)
    air = np.mean((values >= _AIR_HU[0]) & (values <= _AIR_HU[1]))
    return bool(air >= _AIR_SHARE and np.array_equal(values, np.round(values)))


def _of_equal_channels(images: list[ImageFacts], skipped: dict[str, str]) -> list[ImageFacts]:
    """Keep the images of the most frequent number of channels; pictures can all be read as grey."""
    if all(image.is_flat for image in images):
        return images
    usual = Counter(image.channels for image in images).most_common(1)[0][0]
    for image in images:
        if image.channels != usual:
            skipped[image.image_id] = f"has {image.channels} channels, most images have {usual}"
    return [image for image in images if image.channels == usual]


def _check_labels(
    images: list[ImageFacts], unusable: dict[str, str], cases: dict[str, LabelledCase], labels: Sequence[str]
) -> None:
    """Refuse names that no label in the studies has, where there are labels.

    Raises:
        BadInput: every label in the studies is unusable.
    """
    if not unusable or any(image.label_voxels is not None for image in images):
        return
    there = sorted({name for case in cases.values() for name in case.values or {}})
    first, reason = next(iter(unusable.items()))
    named = f"; the labels there are named {', '.join(there)}" if there else ""
    raise BadInput(
        f"labels {','.join(labels)!r}: no label in the studies can be used with them{named}; {first}: {reason}"
    )
