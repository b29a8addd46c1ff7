"""Tier D's pool: hippocampi of which many are nearly the same, and some look like nothing that is asked for.

As large as the pool that it is made of. Of its cases 30 % are near-duplicates, as repeated scans are: a tenth of the
cases has three more each, turned and scaled by hairs, with other noise. Another 15 % are shifted: turned by up to 40
degrees, stretched by up to a third, with inverted or bent intensities, a ramp of brightness and much noise. Both kinds
are synthetic, and so are their labels, which are turned and stretched with the image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from labelrounds.cases import PreparedCase

DUPLICATED, COPIES, SHIFTED = 0.10, 3, 0.15
AGAIN, OTHER = "_again", "_shifted"
"""What the ids of near-duplicates and of shifted cases have in them."""


def disturbed(pool: Sequence[PreparedCase], labels: int, drawn: np.random.Generator) -> Iterator[PreparedCase]:
    """Yield tier D's pool: originals, near-duplicates and shifted images of them.

    Args:
        pool: what it is made of.
        labels: how many there are.
        drawn: all chance.
    """
    order = [pool[index] for index in drawn.permutation(len(pool))]
    duplicated, shifted = round(DUPLICATED * len(pool)), round(SHIFTED * len(pool))
    kept = order[: len(pool) - duplicated * COPIES - shifted]
    yield from kept
    for case in kept[:duplicated]:
        for number in range(COPIES):
            yield _warped(case, f"{case.image_id}{AGAIN}{number}", labels, drawn, 0.03, 3.0, 0.05)
    for case in drawn.choice(len(kept), shifted, replace=False):
        yield _shifted(kept[case], labels, drawn)


def _shifted(case: PreparedCase, labels: int, drawn: np.random.Generator) -> PreparedCase:
    """Return a case as another scanner and another position might show it: dark for bright, bent, turned, scaled."""
    warped = _warped(case, f"{case.image_id}{OTHER}", labels, drawn, 0.35, 40.0, 0.3)
    image = warped.image
    span = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-6)
    if drawn.random() < 0.5:
        span = 1 - span
    span = span.pow(float(drawn.choice([0.4, 2.5])))
    axis = 1 + int(drawn.integers(3))
    ramp = torch.linspace(0.5, 1.5, image.shape[axis])
    span = span * ramp.reshape([-1 if place == axis else 1 for place in range(4)])
    return replace(warped, image=_standardised(span))


def _warped(
    case: PreparedCase,
    name: str,
    labels: int,
    drawn: np.random.Generator,
    scaling: float,
    degrees: float,
    noise: float,
) -> PreparedCase:
    """Return a case scaled and turned by up to some strength, with noise; the label alike."""
    angle = np.deg2rad(drawn.uniform(-degrees, degrees))
    scale = 1 + drawn.uniform(-scaling, scaling, size=3)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = np.concatenate([turn * scale, np.zeros((3, 1))], axis=1)
    where = functional.affine_grid(torch.tensor(matrix[None], dtype=torch.float32), [1, *case.image.shape], False)
    image = functional.grid_sample(case.image[None], where, padding_mode="border", align_corners=False)[0]
    label = functional.grid_sample(case.label[None, None].float(), where, mode="nearest", align_corners=False)[0, 0]
    image = image + noise * torch.from_numpy(drawn.standard_normal(image.shape).astype(np.float32))
    truth = label.to(torch.uint8)
    places = [torch.nonzero(truth == value) for value in range(1, labels + 1)]
    return replace(
        case,
        image_id=name,
        image=_standardised(image),
        label=truth,
        foreground=tuple(voxels for voxels in places if len(voxels)),
    )


def _standardised(image: torch.Tensor) -> torch.Tensor:
    return (image - image.mean()) / image.std().clamp_min(1e-6)
