"""The temperature makes probabilities as sure as they are right, and changes no decision."""

import math

import pytest
import torch

from labelrounds.classification.calibration import probabilities_of, temperature_of
from labelrounds.classification.metrics import calibration_error, decisions
from labelrounds.errors import BadInput


def calibrated(cases: int, multilabel: bool, labels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and a truth that is drawn with just their probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(cases, labels, generator=generator)
    if multilabel:
        return logits, torch.bernoulli(logits.sigmoid(), generator=generator)
    drawn = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, torch.nn.functional.one_hot(drawn, labels)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(multilabel, scale):
    logits, truth = calibrated(4000, multilabel)
    assert temperature_of(scale * logits, truth, multilabel) == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_temperature_lowers_the_calibration_error_and_changes_no_decision(multilabel):
    logits, truth = calibrated(2000, multilabel)
    over_sure = (3 * logits).half()
    before = probabilities_of(over_sure, multilabel)
    after = probabilities_of(over_sure, multilabel, temperature_of(over_sure, truth, multilabel))
    errors = [calibration_error(each.numpy(), truth.bool().numpy(), multilabel) for each in (before, after)]
    assert errors[0] > 0.1 and errors[1] < 0.03
    assert (decisions(before.numpy(), multilabel) == decisions(after.numpy(), multilabel)).all()


def test_logits_that_say_nothing_get_the_highest_temperature():
    logits, truth = calibrated(200, False)
    assert temperature_of(-logits, truth, False) == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("multilabel", [False, True])
def test_where_it_cannot_be_estimated_the_temperature_is_one(multilabel):
    logits, truth = calibrated(40, multilabel)
    single = torch.zeros_like(truth)
    if not multilabel:
        single[:, 2] = 1
    assert temperature_of(logits, truth, multilabel) != 1
    assert temperature_of(logits[:9], truth[:9], multilabel) == 1
    assert temperature_of(logits, single, multilabel) == 1
    assert temperature_of(logits.masked_fill(truth.bool(), math.nan), truth, multilabel) == 1


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_network_that_is_always_right_is_not_made_sure_of_it(multilabel):
    _, truth = calibrated(40, multilabel)
    right = 2.0 * truth - 1
    assert temperature_of(right, truth, multilabel) == 1
    wrong_once = right.clone()
    wrong_once[0] *= -1
    assert temperature_of(wrong_once, truth, multilabel) < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_probabilities_are_float32_whatever_the_network_computes_in(dtype):
    logits = torch.tensor([[0.0, 2.0], [300.0, -300.0]], dtype=dtype)
    single, multiple = probabilities_of(logits, False), probabilities_of(logits, True, 2.0)
    assert single.dtype == multiple.dtype == torch.float32
    assert single[0].tolist() == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))])
    assert multiple[0].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))])
    assert single[1].tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(BadInput, match=f"temperature {temperature}"):
        probabilities_of(torch.zeros(1, 2), False, temperature)


def test_logits_and_truth_of_different_shapes_are_refused():
    with pytest.raises(BadInput, match=r"logits have shape \(20, 2\), truth \(20,\)"):
        temperature_of(torch.zeros(20, 2), torch.zeros(20), False)
