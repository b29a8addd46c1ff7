"""How well annotators agree is measured on the labels that each of them has submitted last."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from labelrounds.annotators import annotators_agree, cohens_kappa
from labelrounds.classification.labels import class_label
from labelrounds.store import StudyStore


@pytest.fixture
def studies(tmp_path):
    """A studies folder with six images, and a way to submit a box or a class and note it in a ledger."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for index in range(6):
        nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), folder / f"image_{index}.nii.gz")
    return Studies(StudyStore(folder, known_labels=["box"], known_classes=["cat", "dog"]), tmp_path)


class Studies:
    def __init__(self, store: StudyStore, work: Path) -> None:
        self.store, self.work, self.ledger = store, work, []

    def box(self, image: str, client: str, size: int, **details) -> None:
        array = np.zeros((8, 8, 8), np.uint8)
        array[:size] = 1
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), self.work / "label.nii.gz")
        self.store.save_label(image, str(self.work / "label.nii.gz"), "final", {"label_info": [{"name": "box"}]})
        self.note(image, client, "final", details)

    def name(self, image: str, client: str, name: str) -> None:
        self.store.save_classes({image: class_label([name], False, "test")})
        self.note(image, client, "classes", {})

    def note(self, image: str, client: str, tag: str, details: dict) -> None:
        label = self.store.get_label_info(image, tag)["sha256"]
        entry = {"event": "submitted", "image": image, "client": client, "label": label, "details": details}
        self.ledger.append(entry)

    def agreement(self, tag: str = "final", **options) -> dict:
        return annotators_agree(self.ledger, self.store._history, tag, **options)


def test_the_dice_is_between_the_last_labels_of_two_annotators(studies):
    studies.box("image_0", "anna", 1)
    studies.box("image_0", "berta", 4, second=True)
    studies.box("image_0", "anna", 2)
    found = studies.agreement()
    (pair,) = found["pairs"]
    assert (pair["image"], pair["annotators"], pair["second"]) == ("image_0", ["anna", "berta"], True)
    assert pair["by_label"] == {"box": pytest.approx(2 * 2 / (2 + 4))}
    assert found["mean"] == pair["agreement"]
    assert "1 comparison(s): too few" in found["sentence"]


def test_one_annotator_alone_agrees_with_nobody(studies):
    studies.box("image_0", "anna", 2)
    studies.box("image_0", "anna", 4)
    studies.box("image_1", "berta", 4)
    found = studies.agreement()
    assert found["pairs"] == []
    assert found["mean"] is None
    assert "nothing is known" in found["sentence"]


def test_a_version_that_has_gone_is_left_out_and_counted(studies):
    studies.box("image_0", "anna", 1)
    studies.box("image_0", "berta", 4)
    for file in (studies.store._history.folder / "versions").rglob("*.nii.gz"):
        file.unlink()
    found = studies.agreement()
    assert (found["pairs"], found["left_out"]) == ([], 1)


def test_nobody_waits_for_labels_to_be_read(studies):
    studies.box("image_0", "anna", 1)
    studies.box("image_0", "berta", 4)
    assert studies.agreement(seconds=0)["left_out"] == 1


def test_classes_are_compared_by_kappa_from_five_cases_on(studies):
    for index in range(6):
        studies.name(f"image_{index}", "anna", "cat" if index < 3 else "dog")
        studies.name(f"image_{index}", "berta", "cat" if index < 2 else "dog")
    found = studies.agreement("classes")
    assert found["mean"] == pytest.approx(5 / 6)
    (kappa,) = found["kappa"]
    assert kappa["annotators"] == ["anna", "berta"]
    # By hand: 5/6 observed, (3*2 + 3*4) / 36 = 1/2 by chance.
    assert kappa["kappa"] == pytest.approx((5 / 6 - 1 / 2) / (1 / 2))
    assert "classes" not in found["pairs"][0]


def test_kappa_is_unknown_where_both_always_say_the_same_one():
    assert cohens_kappa([("cat", "cat")] * 5) is None
    assert cohens_kappa([("cat", "cat"), ("dog", "dog")]) == pytest.approx(1)
    assert cohens_kappa([("cat", "dog"), ("dog", "cat")]) == pytest.approx(-1)
