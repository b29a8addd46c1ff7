"""The network's answer for a whole image, window by window, without ever holding the logits of all its voxels.

Inference calls this between ``transforms.prepare`` and ``transforms.restore``. Where windows overlap, either their
logits are blended with Gaussian weights (nnU-Net, DOI 10.1038/s41592-020-01008-z), or each voxel is the business of
one window alone, the one whose centre is nearest.

Memory: blended logits are summed in a slab as thick as one window, which moves along one axis of the image; what no
later window touches is handed out and given up. Without blending nothing but the windows being computed is held.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from labelrounds.errors import Cancelled

Run = Callable[[torch.Tensor], torch.Tensor]
Stopped = Callable[[], bool]
Blend = Literal["gaussian", "owner"]
Shape = tuple[int, int, int]
Block = tuple[slice, slice, slice]

# A batch of few voxels leaves a device idle; one window alone is slow on a CPU without bfloat16.
_VOXELS_AT_ONCE = 2**18
_FEWEST_AT_ONCE = 2
# So many planes at a time stay in a CPU's cache.
_PLANES = 16
# Of the window's side; with the least weight, as MONAI has both.
_SIGMA = 0.125
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Windows:
    """Where the windows of a patch's size lie on an image.

    Attributes:
        shape: the image's voxels ``(X, Y, Z)``.
        patch_size: what the network sees at once; an image that is shorter is padded by its outermost voxels.
        starts: the first voxel of each window along each axis.
        most_at_once: how many windows are computed together at most.
        filled: whether each batch is filled up to as many, by repetition, unless one window is all there is: a GPU
            chooses anew what is fastest for each size of a batch, and computes a few windows as fast as one.
    """

    shape: Shape
    patch_size: Shape
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    most_at_once: int
    filled: bool = False

    @classmethod
    def over(
        cls,
        shape: Sequence[int],
        patch_size: Shape,
        overlap: float,
        most_at_once: int | None = None,
        filled: bool = False,
    ) -> "Windows":
        """Cover an image; neighbouring windows overlap by at least a share of their side, from 0 to below 1."""
        x, y, z = (_starts(side, patch, overlap) for side, patch in zip(shape, patch_size, strict=True))
        most = most_at_once or max(_FEWEST_AT_ONCE, _VOXELS_AT_ONCE // math.prod(patch_size))
        return cls(_triple(shape), patch_size, (x, y, z), most, filled)

    @property
    def reach(self) -> Shape:
        """How many of the image's voxels lie in a window along each axis."""
        return _triple([min(side, patch) for side, patch in zip(self.shape, self.patch_size, strict=True)])

    @property
    def axis(self) -> int:
        """The axis along which the slab moves, the one that makes it smallest."""
        return min(range(3), key=lambda axis: self.reach[axis] / self.shape[axis])

    @property
    def count(self) -> int:
        """How many windows there are."""
        return math.prod(len(starts) for starts in self.starts)

    @property
    def at_once(self) -> int:
        """How many windows are computed together, at most or, where batches are filled up, always."""
        return self.most_at_once if self.filled and self.count > 1 else min(self.count, self.most_at_once)

    @property
    def slab(self) -> Shape:
        """The shape of the slab in which blended logits are summed."""
        return _triple([self.reach[axis] if axis == self.axis else side for axis, side in enumerate(self.shape)])

    def batches(self) -> list[list[Shape]]:
        """Return the windows' first voxels in the order in which the slab moves, in batches of nearly equal size."""
        corners = sorted(map(_triple, itertools.product(*self.starts)), key=lambda corner: corner[self.axis])
        number = math.ceil(self.count / self.at_once)
        bounds = [self.count * index // number for index in range(number + 1)]
        return [corners[first:last] for first, last in itertools.pairwise(bounds)]

    def owned(self, corner: Shape) -> Block:
        """Return the voxels to which no other window's centre is nearer; of two as near, the later one owns them."""
        x, y, z = (
            _owned(starts, starts.index(start), reach, side)
            for starts, start, reach, side in zip(self.starts, corner, self.reach, self.shape, strict=True)
        )
        return x, y, z

    def bytes(self, channels: int, classes: int, blend: Blend) -> int:
        """Return what is allocated beside the image, the result and the network: a batch and its logits, and the slab.

        Args:
            channels: of the image.
            classes: labels and background.
            blend: how windows are brought together.
        """
        batch = self.at_once * math.prod(self.patch_size) * (channels + classes)
        slab = math.prod(self.slab) * classes if blend == "gaussian" and self.count > 1 else 0
        return torch.float32.itemsize * (batch + slab)


def label_map(
    run: Run, image: torch.Tensor, windows: Windows, blend: Blend, stopped: Stopped | None = None
) -> torch.Tensor:
    """Return the most likely class of each voxel, ``(X, Y, Z)`` uint8, on the image's device.

    Args:
        run: gives the logits ``(B, K, *patch)`` of windows ``(B, C, *patch)``.
        image: ``(C, X, Y, Z)``.
        windows: those of the image.
        blend: how windows are brought together.
        stopped: asked before each batch of windows whether to give up.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    label = torch.empty(windows.shape, dtype=torch.uint8, device=image.device)
    for block, logits in _pieces(run, image, windows, blend, stopped):
        _write_largest(logits, _cut(label, block))
        del logits  # not held while the next windows are computed
    return label


def softmax(run: Run, image: torch.Tensor, windows: Windows, blend: Blend) -> torch.Tensor:
    """Return the probability of each class, ``(K, X, Y, Z)`` float32, of which `label_map` takes the largest.

    Args:
        run: gives the logits ``(B, K, *patch)`` of windows ``(B, C, *patch)``.
        image: ``(C, X, Y, Z)``.
        windows: those of the image.
        blend: how windows are brought together.
    """
    result = torch.empty(0)
    for block, chances in softmax_pieces(run, image, windows, blend):
        if not result.numel():
            result = torch.empty(len(chances), *windows.shape, device=image.device)
        _cut(result, block).copy_(chances)
    return result


def softmax_pieces(
    run: Run, image: torch.Tensor, windows: Windows, blend: Blend, stopped: Stopped | None = None
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Yield blocks that make up the image, and the probability of each class there, ``(K, *block)`` float32.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    for block, logits in logit_pieces(run, image, windows, blend, stopped):
        yield block, logits.softmax(dim=0)


def logit_pieces(
    run: Run, image: torch.Tensor, windows: Windows, blend: Blend, stopped: Stopped | None = None
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Yield blocks that make up the image, and the logits whose softmax are the probabilities, as `softmax_pieces`.

    They are valid until the next block is asked for.
    """
    pieces = _pieces(run, image, windows, blend, stopped)
    if blend == "owner" or windows.count == 1:
        for block, logits in pieces:
            yield block, logits.float()
            del logits  # not held while the next windows are computed
        return
    # Windows that answer 1 add up to their weights.
    one = torch.ones(1, *windows.reach, device=image.device)
    corners = itertools.chain.from_iterable(windows.batches())
    weights = _blended(((corner, one) for corner in corners), windows, image.device)
    for (block, sums), (_, weight) in zip(pieces, weights, strict=True):
        yield block, sums.float() / weight


def _pieces(
    run: Run, image: torch.Tensor, windows: Windows, blend: Blend, stopped: Stopped | None = None
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Yield blocks that make up the image, and logits ``(K, *block)`` that are valid until the next is asked for.

    Blended logits are not divided by the sum of their weights, which changes nothing about which is the largest.
    """
    answers = _answers(run, image, windows, stopped)
    if blend == "owner" or windows.count == 1:
        yield from _owners(answers, windows)
    else:
        yield from _blended(answers, windows, image.device)


def _owners(answers: Iterator[tuple[Shape, torch.Tensor]], windows: Windows) -> Iterator[tuple[Block, torch.Tensor]]:
    for corner, logits in answers:
        block = windows.owned(corner)
        inside = (slice(part.start - start, part.stop - start) for part, start in zip(block, corner, strict=True))
        yield block, _cut(logits, inside)
        del logits


def _blended(
    answers: Iterator[tuple[Shape, torch.Tensor]], windows: Windows, device: torch.device
) -> Iterator[tuple[Block, torch.Tensor]]:
    axis, reach = windows.axis, windows.reach
    weights = _gaussian(windows, device)
    sums = torch.empty(0)
    first = 0  # the image's plane with which the slab begins
    for corner, logits in answers:
        if not sums.numel():
            sums = _zeros(logits, windows.slab)
        if corner[axis] > first:
            done = corner[axis] - first
            yield _block(windows, first, corner[axis]), sums.narrow(axis + 1, 0, done)
            _move(sums, axis + 1, done)
            first = corner[axis]
        at = (0 if other == axis else start for other, start in enumerate(corner))
        target = _cut(sums, (slice(start, start + size) for start, size in zip(at, reach, strict=True)))
        _add(logits, weights, target)
        del logits
    yield _block(windows, first, windows.shape[axis]), sums


def _answers(
    run: Run, image: torch.Tensor, windows: Windows, stopped: Stopped | None
) -> Iterator[tuple[Shape, torch.Tensor]]:
    """Yield each window's first voxel and its logits ``(K, *reach)``."""
    done = 0
    for corners in windows.batches():
        if stopped is not None and stopped():
            raise Cancelled(f"stopped after {done} of {windows.count} windows: the client has gone, or others wait")
        yield from zip(corners, _run(run, image, windows, corners), strict=True)
        done += len(corners)


def gather(image: torch.Tensor, windows: Windows, corners: Sequence[Shape]) -> torch.Tensor:
    """Return the windows ``(B, C, *patch)`` at some corners of an image ``(C, X, Y, Z)``, padded if it is shorter."""
    reach = windows.reach
    blocks = ([slice(start, start + size) for start, size in zip(corner, reach, strict=True)] for corner in corners)
    batch = torch.stack([_cut(image, block) for block in blocks])
    if reach == windows.patch_size:
        return batch
    sides = zip(_margin(windows), windows.patch_size, reach, strict=True)
    amounts = [amount for front, patch, size in sides for amount in (patch - size - front, front)]
    return functional.pad(batch, amounts[::-1], mode="replicate")


def _margin(windows: Windows) -> list[int]:
    """Return how many voxels are padded before an image along each axis.

    By whole voxels, more behind than before, as training places a patch on a shorter case.
    """
    return [(patch - size) // 2 for patch, size in zip(windows.patch_size, windows.reach, strict=True)]


def _run(run: Run, image: torch.Tensor, windows: Windows, corners: list[Shape]) -> torch.Tensor:
    """Return the logits ``(B, K, *reach)`` of the windows at some corners."""
    repeated = corners[-1:] * (windows.at_once - len(corners)) if windows.filled else []
    batch = gather(image, windows, [*corners, *repeated])
    logits = run(batch)
    expected = (len(batch), *windows.patch_size)
    if not isinstance(logits, torch.Tensor) or (len(logits), *logits.shape[2:]) != expected:
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(f"the network returned {shape} for windows {list(batch.shape)}, expected logits of each voxel")
    inside = (slice(front, front + size) for front, size in zip(_margin(windows), windows.reach, strict=True))
    return _cut(logits[: len(corners)], inside)


def _add(logits: torch.Tensor, weights: torch.Tensor, sums: torch.Tensor) -> None:
    """Add weighted logits ``(K, X, Y, Z)`` to sums of the same shape."""
    step = _PLANES if sums.device.type == "cpu" else sums.shape[1]
    parts = zip(logits.split(step, dim=1), weights.split(step), sums.split(step, dim=1), strict=True)
    for planes, weight, total in parts:
        total.addcmul_(planes.float(), weight)


def _write_largest(logits: torch.Tensor, label: torch.Tensor) -> None:
    """Write the class with the largest logit of ``(K, X, Y, Z)`` into a label map ``(X, Y, Z)``."""
    for planes, target in zip(logits.split(_PLANES, dim=1), label.split(_PLANES), strict=True):
        # As argmax(dim=0), which takes up to twenty times as long on a CPU.
        target.copy_(planes.max(dim=0).indices)


def _zeros(logits: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return zeros ``(K, *shape)`` that lie in memory as the logits do; else adding takes up to ten times as long."""
    classes = len(logits)
    if logits.stride(0) == 1:
        return torch.zeros(*shape, classes, device=logits.device).permute(3, 0, 1, 2)
    return torch.zeros(classes, *shape, device=logits.device)


def _move(slab: torch.Tensor, dim: int, planes: int) -> None:
    """Move a slab on by some planes, in place; the new ones are 0."""
    kept = slab.shape[dim] - planes
    for start in range(0, kept, planes):  # so many at a time do not overlap with their new place
        size = min(planes, kept - start)
        slab.narrow(dim, start, size).copy_(slab.narrow(dim, start + planes, size))
    slab.narrow(dim, kept, planes).zero_()


def _block(windows: Windows, first: int, last: int) -> Block:
    x, y, z = (
        slice(first, last) if axis == windows.axis else slice(0, side) for axis, side in enumerate(windows.shape)
    )
    return x, y, z


def _cut(tensor: torch.Tensor, block: Iterable[slice]) -> torch.Tensor:
    """Return a block of a tensor's last three axes, as a view."""
    x, y, z = block
    return tensor[..., x, y, z]


def _gaussian(windows: Windows, device: torch.device) -> torch.Tensor:
    """Return the weight of each voxel in a window, ``reach``, largest in the middle of the patch."""
    bells = []
    for patch in windows.patch_size:
        distance = torch.arange(patch, dtype=torch.float32, device=device) - (patch - 1) / 2
        bells.append(torch.exp(-0.5 * (distance / (_SIGMA * patch)).square()))
    x, y, z = bells
    weights = (x[:, None, None] * y[:, None] * z).clamp_min(_LEAST_WEIGHT)
    inside = (
        slice((patch - size) // 2, (patch - size) // 2 + size)
        for patch, size in zip(windows.patch_size, windows.reach, strict=True)
    )
    return _cut(weights, inside)


def _starts(side: int, patch: int, overlap: float) -> tuple[int, ...]:
    """Return the windows' first voxels along an axis: at equal steps, the last one moved back to the image's end."""
    if side <= patch:
        return (0,)
    step = max(1, int(patch * (1 - overlap)))
    return tuple(min(start, side - patch) for start in range(0, side - patch + step, step))


def _owned(starts: tuple[int, ...], index: int, reach: int, side: int) -> slice:
    """Return the voxels along an axis that lie nearest to a window's centre."""
    first = (starts[index - 1] + starts[index] + reach) // 2 if index > 0 else 0
    last = (starts[index] + starts[index + 1] + reach) // 2 if index + 1 < len(starts) else side
    return slice(first, last)


def _triple(values: Sequence[int]) -> Shape:
    x, y, z = values
    return int(x), int(y), int(z)
