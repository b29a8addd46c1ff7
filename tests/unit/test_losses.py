"""What training minimises is the Dice and cross entropy that others compute too, at each level of the network."""

import pytest
import torch
from monai.losses import DiceCELoss

from labelrounds.losses import _coarser, dice_cross_entropy, supervised_loss


def patches(shape=(3, 4, 8, 6, 10), seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 2
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits, labels


@pytest.mark.parametrize("shape", [(3, 4, 8, 6, 10), (2, 2, 8, 8, 8), (4, 3, 16, 12, 1)], ids=str)
def test_it_is_monais_dice_of_the_batch_and_cross_entropy(shape):
    logits, labels = patches(shape)
    labels[0] = 0  # a patch without a label
    monai = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = dice_cross_entropy(ours, labels), monai(theirs, labels[:, None])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)


def test_logits_of_low_precision_are_summed_in_full():
    logits, labels = patches()
    assert dice_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
    exact = dice_cross_entropy(logits.bfloat16().float(), labels)
    assert torch.equal(dice_cross_entropy(logits.bfloat16(), labels), exact)


def test_a_perfect_segmentation_costs_nothing_and_an_absent_label_neither():
    _, labels = patches()
    labels[labels == 3] = 0
    logits = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1) * 100.0
    assert dice_cross_entropy(logits, labels).item() == pytest.approx(0, abs=1e-4)


def test_each_level_counts_half_of_the_finer_one():
    logits, labels = patches((2, 3, 8, 8, 8))
    levels = [logits, patches((2, 3, 4, 4, 4), 1)[0], patches((2, 3, 2, 2, 2), 2)[0]]
    seen = (labels, labels[:, 1::2, 1::2, 1::2], labels[:, 2::4, 2::4, 2::4])
    losses = [dice_cross_entropy(level, truth) for level, truth in zip(levels, seen, strict=True)]
    expected = (4 * losses[0] + 2 * losses[1] + losses[2]) / 7
    assert supervised_loss(levels, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert supervised_loss(levels[:1], labels).item() == pytest.approx(losses[0].item(), rel=1e-6)


def test_the_gradient_reaches_each_level():
    levels = [patches((2, 3, side, side, side), side)[0].requires_grad_() for side in (8, 4, 2)]
    supervised_loss(levels, patches((2, 3, 8, 8, 8))[1]).backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)


def test_coarser_labels_are_those_at_the_middle_of_each_voxel():
    labels = torch.arange(12).view(1, 12, 1, 1).expand(2, 12, 8, 6)
    assert _coarser(labels, (6, 8, 6))[0, :, 0, 0].tolist() == [1, 3, 5, 7, 9, 11]
    assert _coarser(labels, (4, 8, 6))[0, :, 0, 0].tolist() == [1, 4, 7, 10]
    assert _coarser(labels, (3, 4, 6)).shape == (2, 3, 4, 6)
    assert _coarser(labels, (12, 8, 6)) is labels


def test_a_2d_patch_is_coarsened_within_its_slice():
    logits, labels = patches((2, 3, 8, 8, 1))
    lower = patches((2, 3, 4, 4, 1), 1)[0]
    expected = (2 * dice_cross_entropy(logits, labels) + dice_cross_entropy(lower, labels[:, 1::2, 1::2])) / 3
    assert supervised_loss([logits, lower], labels).item() == pytest.approx(expected.item(), rel=1e-6)
