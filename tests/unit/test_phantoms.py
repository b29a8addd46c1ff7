"""The phantoms are the same everywhere, look like CT, and need more than a threshold."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from labelrounds.errors import BadInput
from labelrounds.phantoms import GEOMETRIES, LABELS, Phantom, make_phantom, write_studies, write_truth

SPINE = LABELS.index("spine") + 1


@pytest.fixture(scope="module")
def first_six() -> list[Phantom]:
    return [make_phantom(seed) for seed in range(6)]


def organ(phantom: Phantom, name: str) -> np.ndarray:
    return phantom.label == LABELS.index(name) + 1


def centre_mm(phantom: Phantom, name: str) -> np.ndarray:
    return nib.affines.apply_affine(phantom.affine, np.argwhere(organ(phantom, name)).mean(axis=0))


def resampled_label(phantom: Phantom, like: Phantom) -> np.ndarray:
    """Nearest label of ``phantom`` at the voxel centres of ``like``; 255 outside its grid."""
    voxels = np.indices(like.label.shape).reshape(3, -1).T
    places = nib.affines.apply_affine(np.linalg.inv(phantom.affine) @ like.affine, voxels)
    return map_coordinates(phantom.label, places.T, order=0, cval=255).reshape(like.label.shape)


def test_the_same_seed_gives_the_same_bytes():
    once, again = make_phantom(11), make_phantom(11)
    assert once.image.tobytes() == again.image.tobytes()
    assert once.label.tobytes() == again.label.tobytes()
    assert np.array_equal(once.affine, again.affine)


@pytest.mark.parametrize(
    ("seed", "digest"),
    [(0, "f547a79d4c018562"), (3, "75a9b5e10458535b")],
)
def test_the_label_of_a_seed_never_changes(seed: int, digest: str):
    # Each voxel is a comparison of generic float64 values, so a last bit that differs between CPUs does not show.
    phantom = make_phantom(seed)
    assert hashlib.sha256(str(phantom.label.shape).encode() + phantom.label.tobytes()).hexdigest()[:16] == digest


def test_the_image_of_a_seed_stays_within_one_hounsfield_unit():
    # Its bytes may not be pinned: numpy does not promise the stream of its normal deviates.
    image = make_phantom(0).image.astype(float)
    body = image[image > -500]
    assert image.mean() == pytest.approx(-562.1, abs=1)
    assert body.mean() == pytest.approx(-11.6, abs=1)


def test_seeds_take_turns_through_the_geometries(first_six: list[Phantom]):
    assert [phantom.geometry for phantom in first_six] == [*GEOMETRIES, GEOMETRIES[0]]


def test_arrays_have_the_promised_types_and_a_size_to_train_on_two_cores(first_six: list[Phantom]):
    for phantom in first_six:
        assert phantom.image.dtype == np.int16
        assert phantom.label.dtype == np.uint8
        assert phantom.image.shape == phantom.label.shape
        assert min(phantom.image.shape) >= 30
        assert max(phantom.image.shape) <= 96


def test_every_organ_is_present_in_each_of_twenty_five_patients():
    for seed in range(25):
        counts = np.bincount(make_phantom(seed).label.ravel(), minlength=len(LABELS) + 1)
        assert len(counts) == len(LABELS) + 1
        assert counts.min() >= 300, (seed, counts)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_anatomy_is_the_same_in_every_geometry(geometry: str):
    axial, other = make_phantom(4, "axial"), make_phantom(4, geometry)
    moved = resampled_label(other, like=axial)
    inside = moved != 255
    for number, name in enumerate(LABELS, start=1):
        a, b = (axial.label == number) & inside, moved == number
        # Thin arches of the spine lose most to nearest-neighbour sampling.
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8, name


def test_a_flipped_scan_is_the_axial_one_read_backwards():
    assert np.array_equal(make_phantom(5, "flipped").label, make_phantom(5, "axial").label[::-1, ::-1])


@pytest.mark.parametrize(
    ("geometry", "codes"),
    [("axial", "RAS"), ("flipped", "LPS"), ("permuted", "PIR"), ("oblique", "LAS"), ("anisotropic", "RAS")],
)
def test_each_geometry_is_stored_along_its_axes(geometry: str, codes: str):
    for seed in range(5):
        assert "".join(nib.aff2axcodes(make_phantom(seed, geometry).affine)) == codes


def test_only_the_oblique_scan_is_rotated_and_by_five_to_twenty_degrees():
    for geometry in GEOMETRIES:
        affine = make_phantom(7, geometry).affine[:3, :3]
        rotation = affine / np.linalg.norm(affine, axis=0)
        nearest = np.rint(rotation)
        angle_deg = np.rad2deg(np.arccos((np.trace(rotation @ nearest.T) - 1) / 2))
        assert (5 <= angle_deg <= 20) if geometry == "oblique" else angle_deg == pytest.approx(0, abs=1e-4)


def test_the_anisotropic_scan_has_slices_of_six_millimetres():
    spacing_mm = nib.affines.voxel_sizes(make_phantom(0, "anisotropic").affine)
    assert spacing_mm[2] == pytest.approx(6)
    assert spacing_mm[:2].max() < 4


def test_no_scan_has_its_origin_at_zero(first_six: list[Phantom]):
    assert all(np.abs(phantom.affine[:3, 3]).min() > 1 for phantom in first_six)


def test_the_liver_lies_right_and_the_spleen_left_of_the_spine(first_six: list[Phantom]):
    for phantom in first_six:
        spine_mm = centre_mm(phantom, "spine")[0]
        for name in ("liver", "right_kidney"):
            assert centre_mm(phantom, name)[0] > spine_mm + 20
        for name in ("spleen", "left_kidney"):
            assert centre_mm(phantom, name)[0] < spine_mm - 20
        assert centre_mm(phantom, "spine")[1] < centre_mm(phantom, "liver")[1] - 20


def test_patients_differ_in_shape_and_place():
    patients = [make_phantom(seed, "axial") for seed in range(6)]
    for name in LABELS:
        volumes_ml = [organ(each, name).sum() * np.linalg.det(each.affine[:3, :3]) / 1000 for each in patients]
        from_spine_mm = np.array([centre_mm(each, name) - centre_mm(each, "spine") for each in patients])
        assert np.std(volumes_ml) > 0.05 * np.mean(volumes_ml), name
        assert name == "spine" or np.linalg.norm(from_spine_mm.std(axis=0)) > 3, name


def test_air_is_near_minus_one_thousand_and_fat_near_minus_one_hundred(first_six: list[Phantom]):
    for phantom in first_six:
        corner = np.median(phantom.image[:4, :4, :4])
        assert corner == pytest.approx(-1000, abs=15)
        fat = phantom.image[(phantom.image > -200) & (phantom.image < -30)]
        assert np.median(fat) == pytest.approx(-105, abs=20)


def test_liver_and_spleen_cannot_be_told_apart_by_their_intensity(first_six: list[Phantom]):
    overlaps = []
    for phantom in first_six:
        liver, spleen = (
            np.histogram(phantom.image[organ(phantom, name)], np.arange(-100, 300, 10))[0] for name in LABELS[:2]
        )
        overlaps.append(np.minimum(liver / liver.sum(), spleen / spleen.sum()).sum())
    assert min(overlaps) > 0.4


def test_the_best_threshold_finds_the_liver_badly(first_six: list[Phantom]):
    for phantom in first_six:
        liver = organ(phantom, "liver")
        low, high = np.percentile(phantom.image[liver], (2, 98))
        found = (phantom.image >= low) & (phantom.image <= high)
        assert 2 * (found & liver).sum() / (found.sum() + liver.sum()) < 0.8


def test_other_bone_is_as_bright_as_the_spine(first_six: list[Phantom]):
    for phantom in first_six:
        assert ((phantom.image > 250) & (phantom.label != SPINE)).sum() > 300


@pytest.mark.parametrize("seed", range(len(GEOMETRIES)))
def test_a_written_study_reads_back_with_its_voxels_and_its_affine_in_both_forms(tmp_path: Path, seed: int):
    (path,) = write_studies(tmp_path / "studies", 1, first_seed=seed)
    (truth,) = write_truth(tmp_path / "truth", 1, first_seed=seed)
    phantom, image, label = make_phantom(seed), nib.load(path), nib.load(truth)
    assert path.name == truth.name == f"phantom_{seed:03d}.nii.gz"
    assert np.array_equal(np.asanyarray(image.dataobj), phantom.image)
    assert np.array_equal(np.asanyarray(label.dataobj), phantom.label)
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm"
    for form in (image.get_qform(coded=True), image.get_sform(coded=True)):
        assert form[1] > 0
        assert np.allclose(form[0], phantom.affine, atol=1e-3)


def test_studies_are_numbered_by_seed_so_that_held_out_ones_do_not_collide(tmp_path: Path):
    paths = write_studies(tmp_path, 2) + write_studies(tmp_path, 1, first_seed=100)
    assert [path.name for path in paths] == ["phantom_000.nii.gz", "phantom_001.nii.gz", "phantom_100.nii.gz"]
    assert sorted(tmp_path.iterdir()) == paths


def test_a_written_file_has_the_same_bytes_each_time(tmp_path: Path):
    (once,), (again,) = write_studies(tmp_path / "a", 1), write_studies(tmp_path / "b", 1)
    assert once.read_bytes() == again.read_bytes()


def test_an_unknown_geometry_is_refused_with_the_ones_allowed():
    with pytest.raises(BadInput, match="'coronal' is not one of axial, flipped"):
        make_phantom(0, "coronal")


def test_a_negative_seed_is_refused():
    with pytest.raises(BadInput, match="-1 is negative"):
        make_phantom(-1)
