"""Pictures of predictions against labels: an axial slice of each case with both outlines, in plain arrays."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

# Okabe and Ito's yellow and sky blue, which stay apart for the colour blind and stand out on grey.
LABEL_COLOUR, PREDICTION_COLOUR = (240, 228, 66), (86, 180, 233)
_SMALLEST_SIDE = 256
_Mask = npt.NDArray[np.bool_]


def outlined_slices(cases: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> npt.NDArray[np.uint8]:
    """Return the cases side by side: of each, the slice with most of the label, its outline and the prediction's.

    Args:
        cases: image ``(X, Y, Z)`` float, label and prediction ``(X, Y, Z)``, axes along right, anterior, superior.

    Returns:
        ``(H, W, 3)``: anterior up and the patient's right on the left, as a radiologist reads it. The label is yellow,
        the prediction blue and drawn above it.
    """
    pictures = [_picture(*(volume.cpu().numpy() for volume in case)) for case in cases]
    height = max(picture.shape[0] for picture in pictures)
    return np.concatenate([_on_black(picture, height) for picture in pictures], axis=1)


def _picture(
    image: npt.NDArray[np.float32], label: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    level = int(np.argmax(np.count_nonzero(label if label.any() else prediction, axis=(0, 1))))
    grey, truth, found = (as_read(volume[:, :, level]) for volume in (image, label, prediction))
    low, high = np.percentile(grey.astype(np.float32), [1, 99])
    shade = np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1) * 255
    factor = max(1, -(-_SMALLEST_SIDE // max(grey.shape)))  # enlarged first, so that outlines stay thin
    picture = np.repeat(_enlarged(shade, factor)[..., None], 3, axis=2).astype(np.uint8)
    for mask, colour in ((truth, LABEL_COLOUR), (found, PREDICTION_COLOUR)):
        picture[_outline(_enlarged(mask, factor))] = colour
    return picture


def as_read(plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Turn ``(right, anterior)`` to rows and columns, anterior first, the patient's right first."""
    return np.asarray(np.flip(plane.T, axis=(0, 1)))


def _enlarged(plane: npt.NDArray[np.generic], factor: int) -> npt.NDArray[np.generic]:
    return np.asarray(plane.repeat(factor, axis=0).repeat(factor, axis=1))


def _outline(labels: npt.NDArray[np.generic]) -> _Mask:
    """Return the pixels of a label that have a neighbour of another value, the picture's edge counting as outside."""
    around = np.pad(labels, 1)
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    differs = [neighbour != labels for neighbour in neighbours]
    return np.asarray((labels != 0) & np.logical_or.reduce(differs))


def _on_black(picture: npt.NDArray[np.uint8], height: int) -> npt.NDArray[np.uint8]:
    return np.pad(picture, ((0, height - picture.shape[0]), (0, 2), (0, 0)))
