"""Windows are brought together as MONAI does it, or by the nearest, and never more than a slab of logits is held."""

import itertools
import subprocess
import sys
import textwrap

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch.utils._python_dispatch import TorchDispatchMode

from labelrounds.errors import Cancelled
from labelrounds.sliding import Windows, label_map, softmax

PATCH = (16, 12, 8)
# One to four windows an axis at half an overlap, odd sizes, shorter than the patch along one axis and along all.
SHAPES = [(16, 12, 8), (17, 13, 9), (24, 21, 19), (41, 12, 20), (9, 31, 8), (40, 5, 21), (3, 4, 5), (1, 1, 1)]
CLASSES = 4


def image_of(shape, channels: int = 1) -> torch.Tensor:
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(1))


class PlaceDependent(torch.nn.Module):
    """Logits that depend on the voxel and as much on its place in the window, so that every window has its own."""

    def __init__(self, patch_size=PATCH, channels: int = 1, channels_last: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.of_value = torch.randn(CLASSES, channels, 1, 1, 1, generator=generator)
        self.of_place = torch.randn(CLASSES, *patch_size, generator=generator)
        self.format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.sizes: list[int] = []

    def forward(self, images):
        self.sizes.append(len(images))
        logits = torch.nn.functional.conv3d(images, self.of_value) + self.of_place
        return logits.contiguous(memory_format=self.format)


def blended_by_monai(network, image, patch_size, overlap) -> torch.Tensor:
    """Return MONAI's logits ``(K, X, Y, Z)``."""
    return sliding_window_inference(
        image[None], patch_size, 2, network, overlap=overlap, mode="gaussian", padding_mode="replicate"
    )[0]


def assert_same_label(label, logits):
    """Equal but for ties: where another class is as likely, up to rounding."""
    likely, found = logits.max(dim=0).values, logits.gather(0, label[None].long())[0]
    assert label.dtype == torch.uint8 and label.shape == logits.shape[1:]
    assert (likely - found).max() < 1e-4
    assert (label == logits.argmax(dim=0)).float().mean() > 0.999


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_windows_are_blended_as_monai_does(shape, overlap, channels_last):
    image, network = image_of(shape), PlaceDependent(channels_last=channels_last)
    expected = blended_by_monai(network, image, PATCH, overlap)
    windows = Windows.over(shape, PATCH, overlap)
    assert_same_label(label_map(network, image, windows, "gaussian"), expected)
    assert softmax(network, image, windows, "gaussian").allclose(expected.softmax(dim=0), atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 41, 3), (16, 16, 1), (7, 35, 2)], ids=str)
def test_slices_of_a_2d_model_are_blended_as_monai_does(shape):
    image, network = image_of(shape, channels=2), PlaceDependent((16, 16, 1), channels=2)
    expected = blended_by_monai(network, image, (16, 16, 1), 0.5)
    assert_same_label(label_map(network, image, Windows.over(shape, (16, 16, 1), 0.5), "gaussian"), expected)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_voxel_belongs_to_the_window_whose_centre_is_nearest(shape, overlap):
    windows = Windows.over(shape, PATCH, overlap)
    owners = torch.zeros(shape, dtype=torch.int64)
    corners = list(itertools.chain.from_iterable(windows.batches()))
    for corner in corners:
        owners[windows.owned(corner)] += 1
    assert (owners == 1).all() and len(set(corners)) == len(corners) == windows.count
    for axis in range(3):
        voxels = torch.arange(shape[axis])
        centres = torch.tensor(windows.starts[axis]) + (windows.reach[axis] - 1) / 2
        nearest = (voxels[:, None] - centres).abs().min(dim=1).values
        for corner in corners:
            owned = windows.owned(corner)[axis]
            distance = (voxels[owned] - corner[axis] - (windows.reach[axis] - 1) / 2).abs()
            assert torch.equal(distance, nearest[owned])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_owner_answers_as_it_would_alone(shape):
    image, network, windows = image_of(shape), PlaceDependent(), Windows.over(shape, PATCH, 0.25)
    label = label_map(network, image, windows, "owner")
    for corner in itertools.product(*windows.starts):
        region = tuple(slice(start, start + size) for start, size in zip(corner, windows.reach, strict=True))
        alone = label_map(network, image[(slice(None), *region)], Windows.over(windows.reach, PATCH, 0.25), "owner")
        owned = windows.owned(corner)
        inside = tuple(slice(p.start - s, p.stop - s) for p, s in zip(owned, corner, strict=True))
        assert torch.equal(label[owned], alone[inside])
    assert softmax(network, image, windows, "owner").argmax(dim=0).equal(label.long())


@pytest.mark.parametrize("side", [1, 7, 8, 9, 12, 13, 16, 17, 32, 33])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.99])
def test_windows_reach_from_end_to_end_without_a_gap(side, overlap):
    starts = Windows.over((side, 8, 8), (8, 8, 8), overlap).starts[0]
    assert starts[0] == 0 and starts[-1] + min(8, side) == side
    assert all(0 < later - earlier <= 8 for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize("blend", ["gaussian", "owner"])
def test_all_in_one_window_is_one_forward_pass(blend):
    network = PlaceDependent()
    label = label_map(network, image_of((10, 12, 5)), Windows.over((10, 12, 5), PATCH, 0.5), blend)
    assert network.sizes == [1] and label.shape == (10, 12, 5)


def test_batches_are_as_large_as_small_windows_allow_and_none_is_left_to_a_single_one():
    assert Windows.over((400, 400, 400), (96, 96, 96), 0.5).at_once == 2
    windows = Windows.over((320, 320, 5), (64, 64, 1), 0.5)
    assert windows.at_once == 64
    sizes = [len(batch) for batch in windows.batches()]
    assert sum(sizes) == windows.count == 405 and max(sizes) <= 64 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("blend", ["gaussian", "owner"])
def test_batches_that_are_filled_up_are_all_of_one_size_and_change_no_answer(blend):
    image, plain, filled = image_of((17, 31, 8)), PlaceDependent(), PlaceDependent()
    expected = label_map(plain, image, Windows.over(image.shape[1:], PATCH, 0.5, most_at_once=4), blend)
    windows = Windows.over(image.shape[1:], PATCH, 0.5, most_at_once=4, filled=True)
    assert label_map(filled, image, windows, blend).equal(expected)
    assert windows.count == 10 and sorted(plain.sizes) == [3, 3, 4] and filled.sizes == [4, 4, 4]
    few = Windows.over((17, 12, 8), PATCH, 0.5, most_at_once=4, filled=True)
    one = Windows.over(PATCH, PATCH, 0.5, most_at_once=4, filled=True)
    assert (few.count, few.at_once) == (2, 4) and (one.count, one.at_once) == (1, 1)


def test_a_network_that_leaves_out_voxels_is_told():
    with pytest.raises(TypeError, match=r"returned \[1, 1, 8, 12, 8\] for windows \[1, 1, 16, 12, 8\]"):
        label_map(lambda batch: batch[:, :, ::2], image_of(PATCH), Windows.over(PATCH, PATCH, 0.5), "owner")
    with pytest.raises(TypeError, match="the network returned list for windows"):
        label_map(lambda batch: [batch], image_of(PATCH), Windows.over(PATCH, PATCH, 0.5), "owner")


@pytest.mark.parametrize("blend", ["gaussian", "owner"])
def test_nothing_is_computed_once_nobody_waits(blend):
    network, shape = PlaceDependent((64, 64, 64)), (100, 100, 100)
    answers = iter([False, False, True])
    with pytest.raises(Cancelled, match="stopped after 4 of 8 windows"):
        label_map(network, image_of(shape), Windows.over(shape, (64, 64, 64), 0.25), blend, lambda: next(answers))
    assert network.sizes == [2, 2]


class Largest(TorchDispatchMode):
    """Notes the most bytes of a tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("blend", ["gaussian", "owner"])
@pytest.mark.parametrize("shape", [(200, 30, 20), (30, 20, 200), (30, 200, 20)], ids=str)
def test_no_tensor_is_larger_than_the_slab_or_a_batch_of_windows(shape, blend):
    windows, classes = Windows.over(shape, (16, 16, 16), 0.5), 20
    slab, batch = 4 * classes * 16 * 30 * 20, 4 * classes * windows.at_once * 16**3
    with Largest() as largest:
        label_map(lambda images: images.expand(-1, classes, -1, -1, -1) + 0, image_of(shape), windows, blend)
    assert largest.bytes <= (max(slab, batch) if blend == "gaussian" else batch)
    assert windows.bytes(1, classes, blend) == (slab if blend == "gaussian" else 0) + batch * (classes + 1) // classes


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["gaussian", "owner"])
def test_26_classes_of_a_large_ct_stay_under_4_gb(blend):
    script = f"""
        import resource, torch
        from labelrounds.sliding import Windows, label_map
        torch.set_num_threads(1)
        network = torch.nn.Conv3d(1, 26, 1).bfloat16()
        with torch.inference_mode():
            shape = (512, 512, 300)
            windows = Windows.over(shape, (128, 128, 128), 0.25)
            label = label_map(lambda images: network(images.bfloat16()), torch.randn(1, *shape), windows, {blend!r})
        assert label.shape == shape
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4e9
