"""That a model is trained is known to every process, for as long as it is, and asking does not get in its way."""

import pytest
from filelock import Timeout

from labelrounds.training_lock import is_trained, training_lock


def test_nothing_is_trained_where_nothing_ever_was(tmp_path):
    assert not is_trained(tmp_path / "nowhere") and not is_trained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_is_known_while_the_lock_is_held_and_no_longer(tmp_path):
    with training_lock(tmp_path):
        assert is_trained(tmp_path) and is_trained(tmp_path)
    assert not is_trained(tmp_path)
    with training_lock(tmp_path):
        assert is_trained(tmp_path)


def test_a_second_training_is_refused(tmp_path):
    with training_lock(tmp_path), pytest.raises(Timeout), training_lock(tmp_path):
        pass
