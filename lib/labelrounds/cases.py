"""Labelled cases as training sees them: read and prepared once, kept in memory on the network's grid."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelrounds.augmentation import draw_intensity, random_mapping, sample_patch, vary_intensity
from labelrounds.cache import PreparedCache, key_of
from labelrounds.config import ModelConfig
from labelrounds.devices import free_bytes
from labelrounds.errors import LabelRoundsError
from labelrounds.labels import on_grid_of
from labelrounds.reading import Image, read_image, read_label
from labelrounds.store import LabelledCase
from labelrounds.transforms import Grid, prepare, prepare_label

logger = logging.getLogger(__name__)

_VOXELS_A_LABEL = 2000
_SHARE_OF_MEMORY = 0.5


TensorsOf = Callable[[LabelledCase, Any], dict[str, torch.Tensor]]
"""Reads a labelled case and prepares it; see `labelrounds.tasks.Task`."""


@dataclass(frozen=True)
class PreparedCase:
    """One labelled case on the network's grid.

    Attributes:
        image: ``(C, X, Y, Z)`` float32.
        label: ``(X, Y, Z)`` uint8, values as in the model's configuration; of a classification model ``(K,)`` uint8,
            1 for each class that the image is of.
        spacing_mm: voxel size of the grid.
        foreground: some voxels ``(N, 3)`` of each label that is present, to aim training patches at.
        key: hash of the image, the label and the way they were prepared.
    """

    image_id: str
    patient: str
    image: torch.Tensor
    label: torch.Tensor
    spacing_mm: tuple[float, float, float]
    foreground: tuple[torch.Tensor, ...]
    key: str = ""


def segmentation_tensors(case: LabelledCase, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Read a labelled case; return what ``PreparedCase`` holds, as the cache keeps it.

    Raises:
        LabelRoundsError: a file can't be used, or a label of the model was not annotated in this case.
    """
    image = read_image(Path(case.image), channels=config.channels)
    grid = Grid.of(image, config)
    label = prepare_label(label_of(case, image, config), grid)
    source = np.array(image.spacing_mm)[list(grid.axes)] * np.array(grid.oriented_shape) / np.array(grid.shape)
    foreground = _foreground(label, len(config.labels))
    return {
        "image": prepare(image, config, grid),
        "label": label,
        "spacing_mm": torch.from_numpy(source.astype(np.float64)),
        **{f"foreground_{value:03d}": voxels for value, voxels in foreground.items()},
    }


def prepare_case(
    case: LabelledCase, config: Any, cache: PreparedCache | None = None, tensors_of: TensorsOf = segmentation_tensors
) -> PreparedCase:
    """Read a labelled case and prepare it for the model, or take it from the cache.

    Raises:
        LabelRoundsError: a file can't be used, or a label of the model was not annotated in this case.
    """
    key = key_of(case, config)
    tensors = cache.read(key) if cache is not None else None
    if tensors is None:
        tensors = tensors_of(case, config)
        if cache is not None:
            cache.write(key, tensors)
            tensors = cache.read(key) or tensors  # mapped from the file, of which memory holds what it has room for
    spacing = tensors["spacing_mm"].tolist()
    return PreparedCase(
        image_id=case.image_id,
        patient=case.patient,
        image=tensors["image"],
        label=tensors["label"],
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        foreground=tuple(tensors[name] for name in sorted(tensors) if name.startswith("foreground")),
        key=key,
    )


def label_of(case: LabelledCase, image: Image, config: ModelConfig) -> NDArray[np.uint8]:
    """Return a case's label ``(X, Y, Z)`` on the grid of its image, with the values that the model gives its labels.

    A label that nobody has named has the names of its own file (``.seg.nrrd``). A file of one layer none of whose
    names the model knows is read as a plain label map is, in the order of the model's labels; a file with layers is
    not, as its values are its own list's order and no one's choice.

    Raises:
        LabelRoundsError: the label can't be used, or a label of the model was not annotated in this case.
    """
    read = read_label(case.label)
    named: Mapping[str, int] | None = case.values
    if named is None and read.segments is not None:
        names_decide = read.layered or not read.segments or set(read.segments) & set(config.labels)
        named = read.segments if names_decide else None
    values = config.label_values if named is None else named
    missing = [name for name in config.labels if name not in values]
    if missing:
        raise LabelRoundsError(f"not annotated: {', '.join(missing)} (has {', '.join(values) or 'nothing'})")
    stored = on_grid_of(read, image.shape, image.affine, image.is_flat, "its label")
    if named is None and stored.max() > len(config.labels):
        raise LabelRoundsError(f"its label has the value {stored.max()}, the model has {len(config.labels)} labels")
    nameless = sorted(set(np.unique(stored).tolist()) - {0, *values.values()})
    if nameless:
        raise LabelRoundsError(
            f"its label has the value {nameless[0]}, which none of its names has:"
            f" {', '.join(f'{name} {value}' for name, value in values.items())}"
        )
    meaning = np.zeros(256, dtype=np.uint8)
    for name, value in config.label_values.items():
        meaning[values[name]] = value
    return meaning[stored]


def prepare_cases(
    cases: Iterable[LabelledCase], config: Any, tensors_of: TensorsOf = segmentation_tensors
) -> tuple[list[PreparedCase], dict[str, str]]:
    """Prepare every case that can be used, as its task does, and return the others' ids with the reason."""
    prepared, skipped = [], {}
    cache = PreparedCache()
    cache.tidy()
    for case in cases:
        try:
            prepared.append(prepare_case(case, config, cache, tensors_of))
        except (LabelRoundsError, OSError) as error:
            logger.warning("Skip %s: %s", case.image_id, error)
            skipped[case.image_id] = str(error)
    return prepared, skipped


class PatchSampler:
    """Draws training patches: cases at random, a fraction of the patches aimed at a random label's voxel.

    Cases lie on the training device as long as they leave half of its free memory to the network, the others in the
    machine's memory or, where they come from the cache's files, on the disk until they are drawn.
    """

    def __init__(
        self,
        cases: list[PreparedCase],
        config: ModelConfig,
        device: torch.device,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._cases, self._config, self._device = cases, config, device
        self._weights = torch.ones(len(cases)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        self._volumes: list[tuple[torch.Tensor, torch.Tensor]] = []
        room = free_bytes(device) * _SHARE_OF_MEMORY
        for case in cases:
            room -= case.image.nbytes + case.label.nbytes
            here = room > 0
            self._volumes.append((case.image.to(device), case.label.to(device)) if here else (case.image, case.label))

    def draw(self, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a patch drawn from each generator: images ``(B, C, *patch)`` float32, labels ``(B, *patch)`` int64."""
        images, labels = zip(*(self._patch(generator) for generator in generators), strict=True)
        draws = [draw_intensity(generator) for generator in generators]
        return vary_intensity(torch.stack(images), draws), torch.stack(labels)

    def _patch(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        index = int(torch.multinomial(self._weights, 1, generator=generator))
        case, (image, label) = self._cases[index], self._volumes[index]
        centre = self._centre(case, generator)
        mapping = random_mapping(label.shape, case.spacing_mm, centre, self._config, generator)
        patch, truth = sample_patch(image, label, mapping, self._config.patch_size)
        return patch.to(self._device), truth.to(self._device)

    def _centre(self, case: PreparedCase, generator: torch.Generator) -> list[float]:
        """Return the patch's middle (voxels), on the chosen label or anywhere, kept inside where it can be.

        A patch that is not turned or scaled has voxels of the case, not mixtures; so has a 2-D one its slice.
        """
        shape = case.label.shape
        aimed = torch.rand(1, generator=generator) < self._config.training.foreground_fraction
        if aimed and case.foreground:
            voxels = case.foreground[int(torch.randint(len(case.foreground), (1,), generator=generator))]
            voxel = voxels[int(torch.randint(len(voxels), (1,), generator=generator))]
            middle = [index + 0.5 for index in voxel.tolist()]
        else:
            middle = [float(torch.rand(1, generator=generator)) * side for side in shape]
        sides = self._config.patch_size
        middle = [math.floor(m - p / 2 + 0.5) + p / 2 for m, p in zip(middle, sides, strict=True)]
        limits = [_limits(p, s) for p, s in zip(sides, shape, strict=True)]
        return [float(min(max(m, low), high)) - 0.5 for m, (low, high) in zip(middle, limits, strict=True)]


def _limits(patch: int, side: int) -> tuple[float, float]:
    """Return the lowest and the highest middle of a patch along an axis of a case.

    A case that is shorter than the patch has one place in it, by whole voxels as inference pads: half a voxel off,
    each patch would be a mixture of neighbours.
    """
    if patch > side:
        middle = patch / 2 - (patch - side) // 2
        return middle, middle
    return patch / 2, side - patch / 2


def _foreground(label: torch.Tensor, labels: int) -> dict[int, torch.Tensor]:
    """Return some voxels of each label that is present."""
    found = {value: torch.nonzero(label == value) for value in range(1, labels + 1)}
    return {
        value: voxels[:: max(1, len(voxels) // _VOXELS_A_LABEL)].contiguous()
        for value, voxels in found.items()
        if len(voxels)
    }
