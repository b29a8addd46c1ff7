"""How well a prediction agrees with a human's label, on arrays of one shape.

The one place for these numbers: training, the demo and the benchmarks take them from here.
Definitions follow Metrics Reloaded (DOI 10.1038/s41592-023-02151-z). A surface is the set of voxels of a mask that
share a face with a voxel outside it; distances run between voxel centres, in mm.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from labelrounds.errors import BadInput

_Mask = npt.NDArray[np.bool_]
_Distances = npt.NDArray[np.float64]


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
