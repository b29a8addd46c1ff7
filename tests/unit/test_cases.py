"""A labelled case reaches the network as it was annotated, and one that can't be used is named."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from labelrounds.augmentation import IntensityDraw
from labelrounds.cases import PatchSampler, PreparedCase, prepare_case, prepare_cases
from labelrounds.errors import LabelRoundsError
from labelrounds.store import LabelledCase
from labelrounds.writing import write_label

AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])
CPU = torch.device("cpu")


def save(array: np.ndarray, file: Path, affine=AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), file)
    return file


@pytest.fixture
def labelled(tmp_path):
    """A case on disk: ``near`` has the value 7 in the file, ``far`` 3, and an organ of another model 1."""

    def make(name="case", values=None, label_affine=AFFINE, label_shape=(12, 10, 8), **changes) -> LabelledCase:
        label = np.zeros(label_shape, np.uint8)
        label[2:5, 2:5, 2:5], label[6:9, 5:8, 4:7], label[0, 0, 0] = 7, 3, 1
        image = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
        return LabelledCase(
            image_id=name,
            image=changes.get("image", save(image, tmp_path / f"{name}.nii.gz")),
            label=changes.get("label", save(label, tmp_path / f"{name}_label.nii.gz", label_affine)),
            values={"other": 1, "far": 3, "near": 7} if values is None else values,
            patient=name,
        )

    return make


def test_a_label_gets_the_models_values_by_name(labelled, make_config):
    case = prepare_case(labelled(), make_config())
    counts = np.bincount(case.label.numpy().ravel(), minlength=4)
    assert counts[1:].tolist() == [27, 27, 0]
    # The file runs to the left and to the back, the network's grid to the right and to the front.
    assert (case.label.numpy()[::-1, ::-1][2:5, 2:5, 2:5] == 1).all()
    assert (case.label.numpy()[::-1, ::-1][6:9, 5:8, 4:7] == 2).all()


def test_a_case_knows_its_grids_spacing_and_its_labels_voxels(labelled, make_config):
    case = prepare_case(labelled(), make_config(spacing_mm=[2.0, 2.0, 2.0]))
    assert tuple(case.label.shape) == tuple(case.image.shape[1:]) == (6, 10, 12)
    assert np.allclose(case.spacing_mm, (2.0, 2.0, 2.0))
    for value, voxels in enumerate(case.foreground, start=1):
        assert len(voxels) == int((case.label == value).sum())
        assert (case.label[tuple(voxels.T)] == value).all()


def test_the_spacing_is_that_of_the_rounded_grid(labelled, make_config):
    case = prepare_case(labelled(), make_config(spacing_mm=[5.0, 5.0, 5.0]))
    assert tuple(case.label.shape) == (2, 4, 5)
    assert np.allclose(case.spacing_mm, (6.0, 5.0, 4.8))


def test_a_case_without_one_of_the_labels_is_refused(labelled, make_config):
    with pytest.raises(LabelRoundsError, match=r"not annotated: far \(has near, other\)"):
        prepare_case(labelled(values={"near": 7, "other": 1}), make_config())


def test_a_label_without_a_voxel_is_annotated_all_the_same(labelled, make_config):
    case = prepare_case(labelled(values={"near": 7, "far": 9, "other": 1, "another": 3}), make_config())
    assert len(case.foreground) == 1 and not (case.label == 2).any()


def test_cases_that_can_not_be_used_are_named_and_the_others_kept(labelled, make_config, tmp_path):
    broken, absent = tmp_path / "broken.nii.gz", tmp_path / "absent.nii.gz"
    broken.write_bytes(b"not a study")
    moved = AFFINE.copy()
    moved[0, 3] = 0.5
    prepared, skipped = prepare_cases(
        [
            labelled("good"),
            labelled("unreadable", image=broken),
            labelled("gone", image=absent),
            labelled("unlabelled", label=broken),
            labelled("other_organs", values={"other": 1}),
            labelled("other_shape", label_shape=(12, 10, 9)),
            labelled("other_place", label_affine=moved),
            labelled("turned", label_affine=np.diag([1.0, 2.0, 3.0, 1.0])),
        ],
        make_config(),
    )
    assert [case.image_id for case in prepared] == ["good"]
    assert "not annotated: near, far" in skipped["other_organs"]
    assert "(12, 10, 9)" in skipped["other_shape"]
    assert "0.5 mm beside" in skipped["other_place"]
    assert list(skipped) == [
        "unreadable",
        "gone",
        "unlabelled",
        "other_organs",
        "other_shape",
        "other_place",
        "turned",
    ]
    assert all(skipped.values())


def test_a_label_that_is_stored_the_other_way_round_is_turned_back(labelled, make_config):
    straight = prepare_case(labelled(), make_config())
    flipped = np.diag([1.0, -2.0, 3.0, 1.0])
    flipped[0, 3] = -11.0
    case = labelled("flipped", label_affine=flipped)
    stored = np.asarray(nib.load(case.label).dataobj)
    save(np.ascontiguousarray(stored[::-1]), case.label, flipped)
    assert torch.equal(prepare_case(case, make_config()).label, straight.label)


def test_a_disk_that_fails_costs_the_case_alone(labelled, make_config, monkeypatch):
    from labelrounds import cases

    def fails(path, **options):
        if "bad" in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        return read_image(path, **options)

    read_image = cases.read_image
    monkeypatch.setattr(cases, "read_image", fails)
    prepared, skipped = prepare_cases([labelled("bad"), labelled("good")], make_config())
    assert [case.image_id for case in prepared] == ["good"]
    assert "Permission denied" in skipped["bad"]


def test_a_voxel_size_beyond_reason_costs_the_case_alone(labelled, make_config, tmp_path):
    huge = np.diag([1e5, 1e5, 1e5, 1.0])
    image = save(np.zeros((12, 10, 8), np.float32), tmp_path / "huge_image.nii.gz", huge)
    case = labelled("huge", image=image, label_affine=huge)
    assert "over" in prepare_cases([case], make_config(spacing_mm=[1.0, 1.0, 1.0]))[1]["huge"]


def test_an_image_of_several_channels_is_read_for_a_model_of_as_many(labelled, make_config, tmp_path):
    image = save(np.random.default_rng(0).normal(size=(12, 10, 8, 2)).astype(np.float32), tmp_path / "two.nii.gz")
    assert prepare_case(labelled(image=image), make_config(channels=2)).image.shape == (2, 12, 10, 8)
    with pytest.raises(LabelRoundsError, match="2 channels"):
        prepare_case(labelled(image=image), make_config())


# Sampling


def ramp_case(config, shape=(20, 18, 9)) -> PreparedCase:
    """The intensity is the slice's number; the only labelled voxels lie in one place."""
    label = torch.zeros(shape, dtype=torch.uint8)
    label[4, 5, 6] = 1
    return PreparedCase(
        "ramp",
        "ramp",
        torch.arange(float(shape[2])).expand(1, *shape).contiguous(),
        label,
        (1.0, 1.0, 5.0),
        (torch.nonzero(label),),
    )


@pytest.fixture
def same_intensities(monkeypatch):
    """Let patches keep the intensities of their case."""
    same = IntensityDraw(noise=(0.0, 0), blur=0.0, brightness=1.0, contrast=1.0, coarseness=1.0, gamma=(1.0, 1.0))
    monkeypatch.setattr("labelrounds.cases.draw_intensity", lambda generator: same)


def still(make_config, **changes):
    training = {"rotation_degrees": 0.0, "scale_range": [1.0, 1.0], **changes.pop("training", {})}
    return make_config(training=training, **changes)


def test_a_batch_has_a_patch_from_each_generator(make_config, make_case):
    config = make_config()
    sampler = PatchSampler([make_case(seed, config) for seed in range(2)], config, CPU)
    images, labels = sampler.draw([torch.Generator().manual_seed(place) for place in range(3)])
    assert images.shape == (3, 1, 16, 16, 16) and images.dtype == torch.float32
    assert labels.shape == (3, 16, 16, 16) and labels.dtype == torch.int64


def test_the_same_generator_draws_the_same_batch(make_config, make_case):
    config = make_config(mirror=["left_right"])
    sampler = PatchSampler([make_case(seed, config) for seed in range(3)], config, CPU)
    one, again, other = (sampler.draw([torch.Generator().manual_seed(seed)]) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


def test_a_patch_depends_on_its_generator_and_not_on_the_others_of_its_batch(make_config, make_case):
    config = make_config(mirror=["left_right"])
    sampler = PatchSampler([make_case(seed, config) for seed in range(3)], config, CPU)
    images, labels = sampler.draw([torch.Generator().manual_seed(seed) for seed in range(6)])
    for seed in range(6):
        image, label = sampler.draw([torch.Generator().manual_seed(seed)])
        assert torch.allclose(image[0], images[seed], atol=1e-5) and torch.equal(label[0], labels[seed])


def test_the_intensities_of_patches_vary(make_config, make_case):
    config = still(make_config, training={"foreground_fraction": 0.0})
    sampler = PatchSampler([replace(make_case(0, config), image=torch.ones(1, 20, 18, 16))], config, CPU)
    images, _ = sampler.draw([torch.Generator().manual_seed(seed) for seed in range(40)])
    varied = (images - 1).abs().amax(dim=(1, 2, 3, 4)) > 0.01
    assert varied.any() and not varied.all()


@pytest.mark.usefixtures("same_intensities")
def test_cases_are_drawn_as_often_as_their_weights_say(make_config, make_case):
    config = still(make_config)
    cases = [replace(make_case(0, config), image=torch.full((1, 20, 18, 16), float(index))) for index in range(3)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(600)]
    for weights, shares in (
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ([2.0, 1.0, 1.0], [0.5, 0.25, 0.25]),
        ([0, 1, 0], [0, 1, 0]),
    ):
        sampler = PatchSampler(cases, config, CPU, weights)
        drawn = [round(sampler.draw([generator])[0].mean().item()) for generator in generators]
        assert np.allclose(np.bincount(drawn, minlength=3) / 600, shares, atol=0.06)


def test_cases_that_leave_the_device_no_room_stay_where_they_are(make_config, make_case, monkeypatch):
    config = make_config()
    cases = [make_case(seed, config) for seed in range(3)]
    size = cases[0].image.nbytes + cases[0].label.nbytes
    moved = []

    class Volume(torch.Tensor):
        def to(self, *args, **kwargs):
            if args and isinstance(args[0], torch.device):
                moved.append(self.dtype)
            return super().to(*args, **kwargs)

    monkeypatch.setattr("labelrounds.cases.free_bytes", lambda device: 2 * 2.5 * size)
    PatchSampler([replace(case, image=case.image.as_subclass(Volume)) for case in cases], config, CPU)
    assert len(moved) == 2


def test_an_aimed_patch_holds_the_label_that_it_aims_at(make_config):
    config = still(make_config, patch_size=[8, 8, 8], training={"foreground_fraction": 1.0})
    sampler = PatchSampler([ramp_case(config)], config, CPU)
    for seed in range(20):
        _, labels = sampler.draw([torch.Generator().manual_seed(seed)])
        assert (labels == 1).sum() == 1


@pytest.mark.usefixtures("same_intensities")
@pytest.mark.parametrize("patch_size", [[8, 8, 8], [12, 8, 4], [8, 8, 1]], ids=str)
def test_a_patch_that_is_not_turned_has_voxels_of_the_case_and_no_mixtures(make_config, patch_size):
    config = still(make_config, patch_size=patch_size)
    case = ramp_case(config, (20, 18, 13))
    sampler = PatchSampler([case], config, CPU)
    for seed in range(20):
        images, labels = sampler.draw([torch.Generator().manual_seed(seed)])
        assert torch.allclose(images, images.round(), atol=1e-4)
        marked = labels == 1
        assert not marked.any() or torch.allclose(images[0, 0][marked[0]], torch.tensor(6.0), atol=1e-4)


@pytest.mark.usefixtures("same_intensities")
def test_an_aimed_2d_patch_is_the_slice_of_the_label_itself(make_config):
    config = still(make_config, patch_size=[8, 8, 1], training={"foreground_fraction": 1.0})
    sampler = PatchSampler([ramp_case(config)], config, CPU)
    for seed in range(10):
        images, labels = sampler.draw([torch.Generator().manual_seed(seed)])
        assert torch.allclose(images, torch.full_like(images, 6.0), atol=1e-4)
        assert (labels == 1).sum() == 1


@pytest.mark.usefixtures("same_intensities")
def test_a_2d_patch_is_never_a_mixture_of_two_slices(make_config):
    config = make_config(patch_size=[8, 8, 1], training={"foreground_fraction": 0.0})
    sampler = PatchSampler([ramp_case(config)], config, CPU)
    seen = set()
    for seed in range(80):
        images, _ = sampler.draw([torch.Generator().manual_seed(seed)])
        assert torch.allclose(images, images.round(), atol=1e-4)
        assert images.round().unique().numel() == 1
        seen.add(int(images.round().mean()))
    assert seen == set(range(9))


@pytest.mark.usefixtures("same_intensities")
def test_patches_stay_within_the_case_where_they_fit(make_config):
    config = still(make_config, patch_size=[8, 8, 8], training={"foreground_fraction": 0.5})
    case = ramp_case(config, (20, 18, 16))
    sampler = PatchSampler([case], config, CPU)
    for seed in range(40):
        images, _ = sampler.draw([torch.Generator().manual_seed(seed)])
        steps = images[0, 0, 0, 0].diff()
        assert torch.allclose(steps, torch.ones(7), atol=1e-3), "the border is repeated inside the patch"


@pytest.mark.usefixtures("same_intensities")
@pytest.mark.parametrize("sides", [(8, 8, 8), (7, 8, 9), (15, 16, 7)], ids=str)
def test_a_case_smaller_than_the_patch_lies_in_its_middle_by_whole_voxels(make_config, sides):
    config = still(make_config, training={"batch_size": 1})
    case = replace(ramp_case(config, sides), image=torch.randn(1, *sides, generator=torch.Generator().manual_seed(0)))
    box = tuple(slice((16 - side) // 2, (16 - side) // 2 + side) for side in sides)
    for seed in range(5):
        images, labels = PatchSampler([case], config, CPU).draw([torch.Generator().manual_seed(seed)])
        assert torch.allclose(images[0, 0][box], case.image[0], atol=1e-4)
        assert torch.equal(labels[0][box], case.label.long())


def test_a_label_that_nobody_named_is_read_in_the_order_of_the_model_that_is_trained(labelled, make_config, tmp_path):
    label = np.zeros((12, 10, 8), np.uint8)
    label[2:5, 2:5, 2:5], label[6:9, 5:8, 4:7] = 1, 2
    unnamed = replace(labelled(label=save(label, tmp_path / "unnamed.nii.gz")), values=None)
    assert np.bincount(prepare_case(unnamed, make_config()).label.numpy().ravel())[1:].tolist() == [27, 27]


@pytest.mark.parametrize(("names", "counts"), [(["far", "near"], [64, 27]), (["one", "two"], [27, 64])], ids=str)
def test_a_segmentation_file_that_nobody_named_names_itself_where_the_model_knows_it(
    labelled, make_config, tmp_path, names, counts
):
    label = np.zeros((12, 10, 8), np.uint8)
    label[2:5, 2:5, 2:5], label[6:10, 5:9, 4:8] = 1, 2
    file = write_label(label, AFFINE, tmp_path / "unnamed.seg.nrrd", names)
    unnamed = replace(labelled(label=file), values=None)
    assert np.bincount(prepare_case(unnamed, make_config()).label.numpy().ravel())[1:].tolist() == counts


@pytest.mark.parametrize("names", [["Far", "Near"], ["far ", " near"]], ids=str)
def test_the_layers_of_a_file_that_nobody_named_go_by_their_names_alone(labelled, make_config, tmp_path, names):
    layers = np.zeros((2, 12, 10, 8), np.uint8)
    layers[0, 2:5, 2:5, 2:5], layers[1, 6:10, 5:9, 4:8] = 1, 1
    text = "NRRD0004\ntype: uchar\ndimension: 4\nspace: right-anterior-superior\nsizes: 2 12 10 8\nencoding: raw\n"
    text += "space directions: none (-1,0,0) (0,-2,0) (0,0,3)\nkinds: list domain domain domain\n"
    text += "".join(f"Segment{layer}_Name:={name}\nSegment{layer}_Layer:={layer}\n" for layer, name in enumerate(names))
    (tmp_path / "layers.seg.nrrd").write_bytes(text.encode() + b"\n" + layers.tobytes(order="F"))
    case = replace(labelled(label=tmp_path / "layers.seg.nrrd"), values=None)
    prepared, skipped = prepare_cases([case], make_config())
    if skipped:
        assert names == ["Far", "Near"] and skipped["case"] == "not annotated: near, far (has Far, Near)"
    else:
        assert names == ["far ", " near"]
        assert np.bincount(prepared[0].label.numpy().ravel())[1:].tolist() == [64, 27]


def test_a_file_of_scribbles_alone_that_nobody_named_annotates_nothing(labelled, make_config, tmp_path):
    label = np.ones((12, 10, 8), np.uint8)
    file = write_label(label, AFFINE, tmp_path / "unnamed.seg.nrrd", ["foreground_scribbles"])
    with pytest.raises(LabelRoundsError, match=r"not annotated: near, far \(has nothing\)"):
        prepare_case(replace(labelled(label=file), values=None), make_config())


def test_a_label_that_nobody_named_is_skipped_when_it_has_more_values_than_the_model(labelled, make_config):
    prepared, skipped = prepare_cases([replace(labelled(), values=None)], make_config())
    assert prepared == []
    assert "has the value 7, the model has 2 labels" in skipped["case"]


def test_a_label_whose_axes_slicer_has_turned_lies_on_its_image(labelled, make_config, tmp_path):
    straight = labelled()
    label = nib.load(straight.label)
    turned = nib.as_closest_canonical(label)
    assert not np.array_equal(turned.affine, label.affine)
    other = replace(straight, label=tmp_path / "turned.nii.gz")
    nib.save(turned, other.label)
    assert torch.equal(prepare_case(other, make_config()).label, prepare_case(straight, make_config()).label)
