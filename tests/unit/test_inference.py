"""An image of any size and orientation comes back as a label map on its own voxels."""

import numpy as np
import pytest
import torch

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import inference
from labelrounds.errors import BadInput, Cancelled, TooLarge
from labelrounds.inference import predict, probabilities, segment
from labelrounds.networks import build_network
from labelrounds.reading import Image

CPU = torch.device("cpu")


@pytest.fixture
def config(make_config):
    return make_config()


class BySign(torch.nn.Module):
    """Says ``far`` where the image is positive, ``near`` where it is negative."""

    def forward(self, images):
        return torch.cat((-images.abs() - 1, -images, images), dim=1)


@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 1, 1), (40, 3, 16), (16, 16, 16), (33, 17, 20)], ids=str)
@pytest.mark.parametrize("blend", ["gaussian", "owner"])
def test_an_image_of_any_size_gets_an_answer_for_each_voxel(make_config, shape, blend):
    config = make_config(inference={"blend": blend})
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    label = predict(BySign(), image, config)
    assert label.dtype == torch.uint8 and label.shape == shape
    assert torch.equal(label, torch.where(image[0] > 0, 2, 1).to(torch.uint8))


def test_probabilities_are_what_the_label_map_is_the_largest_of(config):
    image = torch.randn(1, 33, 17, 20, generator=torch.Generator().manual_seed(0))
    chances = probabilities(BySign(), image, config)
    assert chances.shape == (3, 33, 17, 20)
    assert chances.sum(dim=0).allclose(torch.ones(33, 17, 20))
    assert chances.argmax(dim=0).equal(predict(BySign(), image, config).long())


WHOLE = {
    "network": {"name": "residual_unet", "channels": [4, 6, 8]},
    "patch_size": [16, 16, 16],
    "inference": {"blend": "whole"},
}


class Seen(torch.nn.Module):
    """A network that notes the shapes that it was given."""

    def __init__(self, network):
        super().__init__()
        self.network, self.shapes = network.eval(), []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return self.network(images)


@pytest.mark.parametrize("function", [predict, probabilities])
def test_a_network_that_sees_locally_may_see_the_image_as_a_whole(make_config, function):
    config = make_config(**WHOLE)
    seen, image = Seen(build_network(config)), torch.randn(1, 33, 17, 20)
    answer = function(seen, image, config)
    assert seen.shapes == [(1, 1, 36, 20, 20)]
    assert answer.shape[-3:] == (33, 17, 20)


def test_a_2d_network_sees_each_slice_as_a_whole(make_config):
    config = make_config(**WHOLE | {"patch_size": [16, 16, 1]})
    seen, image = Seen(build_network(config)), torch.randn(1, 33, 17, 3)
    label = predict(seen, image, config)
    assert seen.shapes == [(1, 1, 36, 20, 1)] * 3
    each = [predict(seen, image[..., index : index + 1], config) for index in range(3)]
    assert label.equal(torch.cat(each, dim=2))


def test_without_the_memory_for_the_whole_image_it_is_seen_in_windows(make_config, monkeypatch):
    config = make_config(**WHOLE)
    monkeypatch.setattr(inference, "answering_bytes", lambda config, shape: 2**62)
    seen = Seen(build_network(config))
    assert predict(seen, torch.randn(1, 33, 17, 20), config).shape == (33, 17, 20)
    assert {shape[2:] for shape in seen.shapes} == {(16, 16, 16)}


def test_of_the_whole_image_a_voxel_gets_what_it_gets_of_a_window_far_larger_than_its_surroundings(make_config):
    torch.manual_seed(0)
    config, large = make_config(**WHOLE), make_config(**WHOLE | {"patch_size": [96, 96, 96], "inference": {}})
    network, image = build_network(config).eval(), torch.randn(1, 104, 96, 96)
    whole, windows = (predict(network, image, model) for model in (config, large))
    # Of those far from a window's border, all but such as two labels share, up to the last bits.
    assert (whole != windows)[40:64, 40:56, 40:56].float().mean() < 0.001


def test_a_client_that_has_gone_is_computed_for_no_longer(config):
    with pytest.raises(Cancelled, match="stopped after 0 of 2 windows"):
        segment(BySign(), Image(np.zeros((1, 20, 8, 8), np.float32), np.eye(4), "nifti"), config, CPU, lambda: True)


@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=str)
def test_a_real_network_answers_for_an_image_smaller_than_its_patch(make_config, patch_size):
    config = make_config(patch_size=patch_size)
    label = predict(build_network(config).eval(), torch.randn(1, 5, 7, 3), config)
    assert label.shape == (5, 7, 3) and int(label.max()) <= 2


def test_the_answer_lies_on_the_images_own_voxels(make_config):
    config = make_config(intensity={"kind": "window", "low": -2, "high": 2}, spacing_mm=[1.0, 1.0, 1.0])
    array = np.full((10, 12, 14), -1.0, np.float32)
    array[:5] = 1.0
    affine = np.array([[0.0, 0, -1, 4], [-1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 0, 1]])
    label = segment(BySign(), Image(array[None], affine, "nifti"), config, CPU)
    assert np.array_equal(label, np.where(array > 0, 2, 1))


def test_cleaning_is_applied(make_config):
    config = make_config(cleaning={"far": {"largest_component": True}})
    array = np.full((12, 12, 12), -1.0, np.float32)
    array[2:8, 2:8, 2:8], array[10, 10, 10] = 1.0, 1.0
    label = segment(BySign(), Image(array[None], np.eye(4), "nifti"), config, CPU)
    assert (label == 2).sum() == 216


def test_another_number_of_channels_is_refused(config):
    with pytest.raises(BadInput, match="has 2 channels, model tiny takes 1"):
        segment(BySign(), Image(np.zeros((2, 4, 4, 4), np.float32), np.eye(4), "nifti"), config, CPU)


def test_an_image_that_would_not_fit_into_memory_is_refused_before_it_is_tried(config, monkeypatch):
    monkeypatch.setattr(inference, "free_bytes", lambda device: 1_000_000_000)
    image = torch.zeros(1).expand(config.channels, 1000, 1000, 1000)
    told = r"1000 x 1000 x 1000 voxels, which needs {} GB for 2 labels; 1\.0 GB are free"
    with pytest.raises(TooLarge, match=told.format(r"1\.2")):
        predict(BySign(), image, config)
    with pytest.raises(TooLarge, match=told.format(r"12\.2")):
        probabilities(BySign(), image, config)
