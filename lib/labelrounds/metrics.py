"""How well a prediction agrees with a human's label, on arrays of one shape.

The one place for these numbers: training, the demo and the benchmarks take them from here.
Definitions follow Metrics Reloaded (DOI 10.1038/s41592-023-02151-z). A surface is the set of voxels of a mask that
share a face with a voxel outside it; distances run between voxel centres, in mm. Pixel and Rand error are those of
the ISBI 2012 challenge on neurites in electron microscopy (DOI 10.3389/fnana.2015.00142).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from scipy.ndimage import label as connected_components

from labelrounds.errors import BadInput

_Mask = npt.NDArray[np.bool_]
_Distances = npt.NDArray[np.float64]
# Those at which the ISBI 2012 challenge cuts a probability map.
THRESHOLDS = tuple(step / 10 for step in range(10))


def dice(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], label: int) -> float:
    """Return the Dice of one label (DOI 10.2307/1932409): twice the overlap over the sum of both sizes.

    Args:
        prediction: Label array, of any shape.
        truth: Label array of the same shape.
        label: The value that is compared.

    Returns:
        0 to 1; nan where neither array has the label, since there was nothing to find.

    Raises:
        BadInput: The shapes differ.
    """
    _check_shapes(prediction, truth)
    found, sought = prediction == label, truth == label
    size = np.count_nonzero(found) + np.count_nonzero(sought)
    return 2 * np.count_nonzero(found & sought) / size if size else float("nan")


def dice_per_label(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Sequence[str]) -> dict[str, float]:
    """Return the Dice of each label by its name; ``labels[k - 1]`` is the name of value k.

    Raises:
        BadInput: The shapes differ.
    """
    return {name: dice(prediction, truth, value) for value, name in enumerate(labels, start=1)}


def hd95(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """Return the 95th percentile of the Hausdorff distance between two surfaces, in mm.

    It is the larger of the two directed ones, which a pooled percentile would hide.

    Args:
        prediction: Mask ``(X, Y, Z)``; everything that is not 0 is inside.
        truth: Mask of the same shape.
        spacing_mm: Distance between voxel centres along each axis.

    Returns:
        0 or more; nan where both masks are empty, infinity where one is.

    Raises:
        BadInput: The shapes differ, or the spacing does not have one positive value for each axis.
    """
    there, back = _surface_distances_mm(prediction, truth, spacing_mm)
    if not there.size and not back.size:
        return float("nan")
    if not there.size or not back.size:
        return float("inf")
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def nsd(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Return the normalised surface distance: the share of both surfaces that lies within a tolerance of the other.

    Args:
        prediction: Mask ``(X, Y, Z)``; everything that is not 0 is inside.
        truth: Mask of the same shape.
        spacing_mm: Distance between voxel centres along each axis.
        tolerance_mm: The deviation that counts as agreement, for instance that between two annotators.

    Returns:
        0 to 1; nan where both masks are empty, 0 where one is.

    Raises:
        BadInput: The shapes differ, the spacing does not have one positive value for each axis, or the tolerance is
            negative.
    """
    if not tolerance_mm >= 0:
        raise BadInput(f"tolerance_mm {tolerance_mm} is not 0 or more")
    there, back = _surface_distances_mm(prediction, truth, spacing_mm)
    size = there.size + back.size
    within = np.count_nonzero(there <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    return within / size if size else float("nan")


@dataclass(frozen=True)
class Overlap:
    """How much two things have in common, as counts that can be added up over images.

    Attributes:
        both: what is in the prediction and in the truth.
        found: what is in the prediction.
        sought: what is in the truth.
    """

    both: int
    found: int
    sought: int

    def __add__(self, other: "Overlap") -> "Overlap":
        """Return the counts of two images together."""
        return Overlap(self.both + other.both, self.found + other.found, self.sought + other.sought)

    @property
    def precision(self) -> float:
        """The share of what was found that is right; 1 where nothing was found."""
        return self.both / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """The share of what was sought that was found; 1 where there was nothing to find."""
        return self.both / self.sought if self.sought else 1.0

    @property
    def f_score(self) -> float:
        """The harmonic mean of both; 1 where there was nothing to find and nothing was found."""
        total = self.found + self.sought
        return 2 * self.both / total if total else 1.0


def pixel_overlap(prediction: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Overlap:
    """Count the pixels of two masks; 1 minus the F-score is the ISBI 2012 challenge's pixel error.

    Args:
        prediction: Mask of cells, of any shape; everything that is not 0 is inside.
        truth: Mask of the same shape.

    Raises:
        BadInput: The shapes differ.
    """
    _check_shapes(prediction, truth)
    found, sought = prediction != 0, truth != 0
    return Overlap(*(int(np.count_nonzero(mask)) for mask in (found & sought, found, sought)))


def rand_overlap(prediction: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Overlap:
    """Count the pairs of pixels that lie in one cell: of the prediction, of the truth, of both.

    This is the foreground-restricted Rand score of the ISBI 2012 challenge (DOI 10.3389/fnana.2015.00142), without
    the thinning of borders that its leader board got in 2015: 1 minus the F-score is the Rand error as it was
    reported until then, the precision is the merge score and the recall the split score. As the challenge's own
    program does: a cell is a component of pixels that share an edge, pixels outside the truth's cells do not count,
    each pixel between the prediction's cells is a cell of its own, and a pixel makes a pair with itself.

    Args:
        prediction: Mask ``(X, Y)`` of cells, 0 between them; a third axis of length 1 may follow.
        truth: Mask of the same shape.

    Raises:
        BadInput: The shapes differ.
    """
    _check_shapes(prediction, truth)
    cells, _ = connected_components(truth != 0)
    parts, count = connected_components(prediction != 0)
    inside = cells > 0
    cells, parts = cells[inside].astype(np.int64), parts[inside].astype(np.int64)
    loners = int(np.count_nonzero(parts == 0))
    common = np.bincount((cells * (count + 1) + parts)[parts > 0])
    return Overlap(
        both=_squares(common) + loners,
        found=_squares(np.bincount(parts[parts > 0])) + loners,
        sought=_squares(np.bincount(cells)),
    )


def least_error(
    overlap: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Overlap],
    probabilities: Sequence[npt.NDArray[Any]],
    truths: Sequence[npt.NDArray[Any]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[float, float]:
    """Return 1 minus the largest F-score over thresholds, and the threshold that gives it.

    The ISBI 2012 challenge ranks by this. The threshold is chosen on the very images that are judged, so the error
    is a little too small; that at a threshold fixed beforehand is not.

    Args:
        overlap: `pixel_overlap` or `rand_overlap`; its counts are added up over the images.
        probabilities: For each image that a pixel is cell, 0 to 1.
        truths: The masks, in the same order.
        thresholds: What a pixel's probability must exceed.

    Raises:
        BadInput: There is no image, their numbers or a pair's shapes differ.
    """
    if not probabilities or len(probabilities) != len(truths):
        raise BadInput(f"{len(probabilities)} probability maps for {len(truths)} truths; one each is needed")
    errors = []
    for threshold in thresholds:
        counts = [overlap(map_ > threshold, truth) for map_, truth in zip(probabilities, truths, strict=True)]
        errors.append((1 - reduce(Overlap.__add__, counts).f_score, threshold))
    return min(errors)


def _squares(counts: npt.NDArray[Any]) -> int:
    return int(np.dot(counts.astype(np.int64), counts.astype(np.int64)))


def _surface_distances_mm(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], spacing_mm: Sequence[float]
) -> tuple[_Distances, _Distances]:
    """Return each surface voxel's distance to the other surface: from prediction to truth, and back."""
    _check_shapes(prediction, truth)
    _check_spacing(spacing_mm, prediction.ndim)
    found, sought = prediction != 0, truth != 0
    box = find_objects((found | sought).astype(np.uint8))
    if not box:
        return np.empty(0), np.empty(0)
    # Both surfaces lie in the box, so nothing outside it can change a distance.
    here, there = _surface(found[box[0]]), _surface(sought[box[0]])
    return _distances_mm(here, there, spacing_mm), _distances_mm(there, here, spacing_mm)


def _surface(mask: _Mask) -> _Mask:
    # Beyond the image counts as outside, so a mask that is cut off by it has a surface there.
    return mask & ~binary_erosion(mask)


def _distances_mm(start: _Mask, goal: _Mask, spacing_mm: Sequence[float]) -> _Distances:
    if not goal.any():
        return np.full(np.count_nonzero(start), np.inf)
    distances: _Distances = distance_transform_edt(~goal, sampling=spacing_mm)
    return distances[start]


def _check_shapes(prediction: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
    if prediction.shape != truth.shape:
        raise BadInput(f"prediction has shape {prediction.shape}, truth {truth.shape}; they must be the same")


def _check_spacing(spacing_mm: Sequence[float], axes: int) -> None:
    if len(spacing_mm) != axes or not all(0 < each < float("inf") for each in spacing_mm):
        raise BadInput(f"spacing_mm {tuple(spacing_mm)} does not have one positive value for each of {axes} axes")
