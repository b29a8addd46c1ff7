"""A training goes on where it was killed, or starts over where its state is of no use."""

import logging
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from learners import Interrupted, epochs_of, learner, never, out_of_memory, same, scripted, weights
from torch import nn


@pytest.mark.parametrize("killed_after", [1, 3])
@pytest.mark.parametrize("network", ["unet", "attention_unet"])
def test_a_killed_training_goes_on_to_the_same_bits(make_small, cases, tmp_path, network, killed_after):
    config = make_small(network={"name": network, "channels": [4, 6, 8]})
    state = tmp_path / "state.safetensors"
    whole = weights(learner(config, cases, epochs=3).run(lambda epoch: None, never))

    def killed(epoch):
        if epoch.number == killed_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        learner(config, cases, epochs=3, state=state).run(killed, never)
    outcome, reported = epochs_of(learner(config, cases, epochs=3, state=state, seed=99))
    assert [epoch.number for epoch in reported] == list(range(killed_after + 1, 4))
    assert same(weights(outcome), whole)


def test_dropout_is_drawn_again_as_before(make_small, cases, tmp_path):
    def with_dropout(network):
        network.net.bottleneck.register_forward_hook(
            lambda module, inputs, output: nn.functional.dropout(output, 0.5, module.training)
        )

    state, config = tmp_path / "state.safetensors", make_small()
    # Without validation cases, so that the last weights count.
    whole = weights(learner(config, cases[:2], epochs=2, change=with_dropout).run(lambda epoch: None, never))

    def killed(epoch):
        raise Interrupted

    with pytest.raises(Interrupted):
        learner(config, cases[:2], epochs=2, state=state, change=with_dropout).run(killed, never)
    torch.rand(7)
    resumed = learner(config, cases[:2], epochs=2, state=state, change=with_dropout).run(lambda epoch: None, never)
    assert same(weights(resumed), whole)


def test_a_state_of_another_run_is_ignored(make_small, cases, tmp_path):
    state, config = tmp_path / "state.safetensors", make_small()
    learner(config, cases, epochs=2, state=state, fingerprint="one").run(lambda epoch: None, never)
    _, reported = epochs_of(learner(config, cases, epochs=2, state=state, fingerprint="another"))
    assert [epoch.number for epoch in reported] == [1, 2]


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def damage_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def damage_empty(file: Path) -> None:
    file.write_bytes(b"")


def rewritten(change):
    def damage(file: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(file, "pt") as opened:
            note, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        change(note, tensors)
        save_file(tensors, file, metadata=note)

    return damage


def first_of(tensors, part):
    return next(key for key in tensors if key.startswith(part))


DAMAGES = {
    "cut": damage_cut,
    "another header": damage_header,
    "empty": damage_empty,
    "no standing": rewritten(lambda note, tensors: note.pop("standing")),
    "a standing that is none": rewritten(lambda note, tensors: note.update(standing="many")),
    "an unknown standing": rewritten(lambda note, tensors: note.update(standing='{"finished": 1}')),
    "a tensor missing": rewritten(lambda note, tensors: tensors.pop(first_of(tensors, "network/"))),
    "an average missing": rewritten(lambda note, tensors: tensors.pop(first_of(tensors, "average/"))),
    "a tensor of another shape": rewritten(
        lambda note, tensors: tensors.update({first_of(tensors, "best/"): torch.zeros(1, 2)})
    ),
    "a tensor too many": rewritten(lambda note, tensors: tensors.update({"loose": torch.zeros(1)})),
    "an unknown part": rewritten(lambda note, tensors: tensors.update({"more/weight": torch.zeros(1)})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_told_and_the_training_starts_over(make_small, cases, tmp_path, caplog, damage):
    state, config = tmp_path / "state.safetensors", make_small()
    whole = weights(learner(config, cases, epochs=1, state=state).run(lambda epoch: None, never))
    damage(state)
    with caplog.at_level(logging.WARNING):
        again = learner(config, cases, epochs=1, state=state)
    assert "Start over" in caplog.text and "state.safetensors" in caplog.text
    outcome, reported = epochs_of(again)
    assert [epoch.number for epoch in reported] == [1]
    assert same(weights(outcome), whole)


def test_a_state_that_can_not_be_saved_does_not_end_the_training(make_small, cases, tmp_path, caplog, monkeypatch):
    def full(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelrounds.learning_state.save_file", full)
    outcome, _ = epochs_of(learner(make_small(), cases, epochs=2, state=tmp_path / "state.safetensors"))
    assert outcome.epochs == 2
    assert "No space left" in caplog.text
    assert list(tmp_path.glob("state*")) == []


def test_a_resumed_training_is_as_patient_as_one_that_was_not_killed(make_small, cases, monkeypatch, tmp_path):
    state = tmp_path / "state.safetensors"

    def killed(epoch):
        if epoch.number == 4:
            raise Interrupted

    scripted(monkeypatch, [0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    with pytest.raises(Interrupted):
        learner(make_small(), cases, epochs=10, patience=3, state=state).run(killed, never)
    _, reported = epochs_of(learner(make_small(), cases, epochs=10, patience=3, state=state))
    assert [epoch.number for epoch in reported] == [5, 6]


def test_a_smaller_batch_is_kept_over_a_restart(make_small, cases, monkeypatch, tmp_path):
    state, config = (
        tmp_path / "state.safetensors",
        make_small(training={"batch_size": 4, "iterations_per_epoch": 2}),
    )

    def sizes_of(run, killed):
        sizes, draw = [], run._steps._sampler.draw

        def limited(generators):
            sizes.append(len(generators))
            return out_of_memory() if len(generators) > 2 else draw(generators)

        def kill(epoch):
            if killed:
                raise Interrupted

        monkeypatch.setattr(run._steps._sampler, "draw", limited)
        with suppress(Interrupted):
            run.run(kill, never)
        return sizes

    assert sizes_of(learner(config, cases, epochs=2, state=state), True) == [4, 2, 2]
    again = learner(config, cases, epochs=2, state=state)
    assert sizes_of(again, False) == [2, 2]
    assert again.notes == ["batch size 2 as before the restart, as memory did not suffice for more"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_killed_training_goes_on_on_a_gpu(make_small, cases, tmp_path):
    state, config, cuda = tmp_path / "state.safetensors", make_small(), torch.device("cuda:0")
    whole = weights(learner(config, cases, epochs=3, device=cuda).run(lambda epoch: None, never))

    def killed(epoch):
        raise Interrupted

    with pytest.raises(Interrupted):
        learner(config, cases, epochs=3, device=cuda, state=state).run(killed, never)
    resumed, reported = epochs_of(learner(config, cases, epochs=3, device=cuda, state=state))
    assert [epoch.number for epoch in reported] == [2, 3]
    # Sums on a GPU have no fixed order, and so no fixed last bits.
    for name, value in weights(resumed).items():
        assert torch.allclose(value, whole[name], atol=0.05), name
