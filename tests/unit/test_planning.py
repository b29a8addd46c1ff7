"""A plan fits the images: what is in the folder decides, and each value is explained."""

import itertools
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from labelrounds import sizing
from labelrounds.cli import app
from labelrounds.config import ModelConfig, TrainingConfig, load_config
from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.fingerprint import Fingerprint, ImageFacts, take_fingerprint
from labelrounds.networks import build_network
from labelrounds.plan_file import plan_model, yaml_of
from labelrounds.planning import lateral_labels, make_plan, one_sided_labels
from labelrounds.sizing import go_down, plan_layout, target_spacing
from labelrounds.store import StudyStore

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    """The same machine for every test."""
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 16_000_000_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def facts(shape=(35, 50, 36), spacing=(1.0, 1.0, 1.0), *, label=None, parts=1, **changes) -> ImageFacts:
    voxels = None if label is None else {"a": label}
    defaults = {
        "image_id": "case",
        "shape": shape,
        "spacing_mm": spacing,
        "channels": 1,
        "is_flat": False,
        "modality": "",
        "intensities": np.linspace(0, 100, 101, dtype=np.float32),
        "label_voxels": voxels,
        "components": {"a": parts} if label else {},
    }
    return ImageFacts(**{**defaults, **changes})


def fingerprint(*images: ImageFacts, labels=("a",)) -> Fingerprint:
    return Fingerprint(labels, images, {}, {})


def planned(print_: Fingerprint, device=CPU, network="unet") -> dict:
    """The keys that are chosen, by their place in the file."""
    return {choice.key: choice.value for choice in make_plan(print_, network, device).choices}


def save(array: np.ndarray, file: Path, spacing=(1.0, 1.0, 1.0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), file)


@pytest.fixture
def studies(tmp_path):
    """Make a folder of images of noise with a box of 1 and one of 2 as labels."""

    def make(count=2, labelled=2, shape=(24, 20, 18), spacing=(1.0, 1.0, 2.0), low=0, prefix="case") -> Path:
        folder = tmp_path / "studies"
        for index in range(count):
            image = np.random.default_rng(index).integers(low, low + 200, shape).astype(np.int16)
            label = np.zeros(shape, np.uint8)
            label[2:8, 2:8, 2:8], label[12:16, 12:16, 10:14] = 1, 2
            image[label == 1] = 77
            save(image, folder / f"{prefix}_{index}.nii.gz", spacing)
            if index < labelled:
                save(label, folder / "labels" / "final" / f"{prefix}_{index}.nii.gz", spacing)
        return folder

    return make


def plan_of(studies: Path, labels="near,far", name="mine", configs=None, network="unet", force=False):
    return plan_model(str(studies), labels, name, configs or studies.parent / "models", network, "cpu", force)


# nnU-Net's rules


def test_the_hippocampus_gets_nnunets_plan():
    plan = planned(fingerprint(*[facts(label=2000)] * 160))
    assert plan["spacing_mm"] == [1.0, 1.0, 1.0]
    assert plan["patch_size"] == [40, 56, 40]
    assert plan["network.strides"] == [(2, 2, 2)] * 3
    assert plan["network.kernels"] == [(3, 3, 3)] * 4


def test_thick_slices_get_their_tenth_percentile_and_other_axes_the_median():
    shapes = np.array([[200, 200, 20]] * 11)
    spacings = np.array([[0.7, 0.7, slices] for slices in (3, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6)])
    assert target_spacing(spacings, shapes) == (0.7, 0.7, 4.0)
    assert target_spacing(spacings, shapes * [1, 1, 10])[2] == 5.0  # many slices are not thick ones
    assert target_spacing(spacings * [1, 1, 0.4], shapes)[2] == 2.0  # nor are those of under three times the pixel


def test_no_step_and_no_kernel_across_thick_slices_until_the_pixels_are_as_coarse():
    levels = go_down((256, 216, 10), (1.5, 1.5, 10.0))
    assert levels.strides[:3] == [(2, 2, 1), (2, 2, 1), (2, 2, 2)]
    assert levels.kernels[:3] == [(3, 3, 1), (3, 3, 1), (3, 3, 3)]
    assert levels.patch == (256, 224, 10)


@pytest.mark.parametrize(
    "patch", [(128, 128, 128), (40, 56, 40), (320, 256, 20), (16, 16, 16), (1, 64, 64), (12, 90, 7)]
)
def test_no_side_ends_under_four_voxels_unless_it_began_there(patch):
    levels = go_down(patch, (1.0, 1.0, 1.0))
    for axis, side in enumerate(levels.patch):
        steps = math.prod(stride[axis] for stride in levels.strides)
        assert side % steps == 0
        assert side >= patch[axis]
        assert steps == 1 or side // steps >= 4
    assert all(max(stride) == 2 for stride in levels.strides)
    assert len(levels.kernels) == len(levels.strides) + 1


# What is affordable


@pytest.mark.parametrize(
    ("device", "network", "shape", "spacing", "flat"),
    [
        (CPU, "unet", (280, 320, 22), (0.7, 0.7, 6.5), False),
        (CUDA, "vnet", (280, 320, 22), (0.7, 0.7, 6.5), False),
        (CPU, "attention_unet", (60, 50, 40), (1.0, 1.0, 1.0), False),
        (CPU, "residual_unet", (60, 50, 40), (1.0, 1.0, 1.0), False),
        (CPU, "vnet", (9, 10, 11), (1.0, 1.0, 1.0), False),
        (CPU, "unet", (1, 200, 180), (5.0, 1.0, 1.0), False),
        (CUDA, "unet", (512, 512, 1), (1.0, 1.0, 1.0), True),
    ],
)
def test_whatever_the_shape_the_network_is_built_and_fits(device, network, shape, spacing, flat, tmp_path):
    print_ = fingerprint(*[facts(shape, spacing, is_flat=flat)] * 3)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml_of(make_plan(print_, network, device), "title"))
    config = load_config(file)
    assert config.dimensions == (2 if flat else 3)
    assert plan_layout(print_, network, device).cost.bytes < 0.7 * 16e9
    network = build_network(config).eval()
    small = [side if side <= 64 else math.prod(stride[axis] for stride in config.network.options["strides"]) * 2
             for axis, side in enumerate(config.patch_size)]  # fmt: skip
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *small)).shape == (1, 2, *small)


def test_less_memory_means_a_smaller_patch_and_too_little_is_refused(monkeypatch):
    print_ = fingerprint(*[facts((300, 300, 200))] * 3)
    roomy = plan_layout(print_, "unet", CUDA)
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 4_000_000_000)
    tight = plan_layout(print_, "unet", CUDA)
    assert math.prod(tight.levels.patch) < math.prod(roomy.levels.patch)
    assert tight.cost.bytes < 0.7 * 4e9
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 100_000_000)
    with pytest.raises(BadInput, match="free some memory"):
        plan_layout(print_, "unet", CUDA)


def test_a_cpu_gets_affordable_steps_and_coarser_voxels_for_large_images():
    print_ = fingerprint(*[facts((512, 512, 300), (0.8, 0.8, 1.5))] * 3)
    layout = plan_layout(print_, "unet", CPU)
    assert layout.cost.cpu_seconds <= 2
    assert layout.coarsened
    assert max(layout.spacing_mm) < 3
    assert plan_layout(print_, "unet", CUDA).spacing_mm == (0.8, 0.8, 1.5)


def test_a_small_label_keeps_the_voxels_fine():
    print_ = fingerprint(*[facts((512, 512, 300), (0.8, 0.8, 1.5), label=310)] * 3)
    layout = plan_layout(print_, "unet", CPU)
    assert 310 * 0.8 * 0.8 * 1.5 / math.prod(layout.spacing_mm) >= 299


def test_a_batch_holds_no_more_than_five_percent_of_the_voxels():
    assert plan_layout(fingerprint(*[facts()] * 10), "unet", CUDA).batch == 2
    assert plan_layout(fingerprint(*[facts()] * 200), "unet", CUDA).batch == 7  # nnU-Net's, were its memory larger


def test_images_of_a_few_voxels_are_refused():
    with pytest.raises(BadInput, match="3 x 50 x 3 voxels"):
        plan_layout(fingerprint(facts((3, 50, 3))), "unet", CPU)


# Labels and intensities


@pytest.mark.parametrize(
    "name", ["left_kidney", "kidney_right", "kidney left", "l_x", "x (R)", "KidneyLeft", "Left Lung", "leftventricle"]
)
def test_names_of_sides_are_found(name):
    assert lateral_labels(["liver", name]) == [name]


@pytest.mark.parametrize("name", ["liver", "vertebrae_L1", "bright_spot", "stroma", "rectum", "lobe 2", "tumour"])
def test_names_without_a_side_are_not_taken_for_one(name):
    assert lateral_labels([name]) == []


@pytest.mark.parametrize(
    "name", ["spleen", "Liver", "liver_tumour", "HepaticVessel", "gall_bladder", "inferior vena cava"]
)
def test_organs_of_one_side_are_not_flipped(name):
    assert one_sided_labels(["tumour", name]) == [name]
    assert planned(fingerprint(facts(), labels=("tumour", name)))["mirror"] == []


@pytest.mark.parametrize("name", ["kidney", "prostate", "hippocampus", "anterior", "tumour", "lung", "gastrocnemius"])
def test_what_is_paired_or_in_the_middle_is_flipped_left_to_right(name):
    assert planned(fingerprint(facts(), labels=(name,)))["mirror"] == ["left_right"]


def test_flips_never_swap_sides():
    assert planned(fingerprint(facts()))["mirror"] == ["left_right"]
    assert planned(fingerprint(facts(), labels=("left_x", "right_x")))["mirror"] == []
    flat = facts((64, 64, 1), is_flat=True)
    assert planned(fingerprint(flat))["mirror"] == ["left_right", "posterior_anterior"]
    assert planned(fingerprint(flat, labels=("left_x",)))["mirror"] == []


def test_ct_is_clipped_to_its_labelled_voxels_and_before_there_are_any_to_a_usual_window():
    hounsfield = np.linspace(-50, 150, 1001, dtype=np.float32)
    labelled = facts(label=10, modality="CT", intensities=hounsfield)
    rest = facts(modality="CT", intensities=hounsfield - 900)
    assert planned(fingerprint(labelled, rest))["intensity"] == {"kind": "window", "low": -49, "high": 149}
    assert planned(fingerprint(rest))["intensity"] == {"kind": "window", "low": -160, "high": 240}
    assert planned(fingerprint(rest, labels=("left_lung",)))["intensity"]["low"] == -1000
    constant = facts(label=10, modality="CT", intensities=np.full(5, 7, np.float32))
    assert planned(fingerprint(constant))["intensity"] == {"kind": "window", "low": 7, "high": 8}


def test_what_is_not_ct_alone_is_scaled_image_by_image():
    assert planned(fingerprint(facts(modality="MR")))["intensity"]["kind"] == "zscore"
    mixed = fingerprint(facts(modality="MR"), facts(modality="CT"))
    assert planned(mixed)["intensity"]["kind"] == "zscore"
    assert any("Several modalities" in note for note in make_plan(mixed, "unet", CPU).notes)


def test_only_what_is_known_to_be_in_one_piece_is_cleaned():
    piece, pieces = facts(label=50), facts(label=50, parts=3)
    kept = {"a": {"largest_component": True}}
    assert planned(fingerprint(*[piece] * 19, pieces))["cleaning"] == kept
    assert planned(fingerprint(*[piece] * 18, pieces, pieces))["cleaning"] == {}
    assert planned(fingerprint(*[piece] * 9))["cleaning"] == {}


def test_more_cases_train_longer_and_a_gpu_longer_still():
    def iterations(cases, device):
        plan = planned(fingerprint(*[facts(label=50)] * cases), device)
        return plan["training.epochs"] * plan["training.iterations_per_epoch"]

    assert iterations(5, CPU) < iterations(20, CPU) < iterations(100, CPU) < iterations(100, CUDA)


# From a folder to a file


def test_a_folder_is_measured_as_training_would_read_it(studies):
    store = StudyStore(studies(count=3, labelled=2))
    print_ = take_fingerprint(store, ["near", "far"])
    assert [image.shape for image in print_.images] == [(24, 20, 18)] * 3
    assert print_.images[0].spacing_mm == (1.0, 1.0, 2.0)
    assert print_.images[0].label_voxels == {"near": 216, "far": 64}
    assert print_.images[0].components == {"near": 1, "far": 1}
    assert print_.images[2].label_voxels is None
    assert print_.label_sizes_mm3() == {"near": 432.0, "far": 128.0}
    (low, middle, _), labelled = print_.intensity_percentiles((0, 50, 100))
    assert labelled
    assert middle == 77  # near is 216 of 280 voxels, all of them 77
    assert low >= 0


def test_axes_are_the_networks_not_the_files(tmp_path):
    turned = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    (tmp_path / "s").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((30, 20, 10), np.int16), turned), tmp_path / "s" / "a.nii.gz")
    image = take_fingerprint(StudyStore(tmp_path / "s"), ["a"]).images[0]
    assert image.shape == (10, 30, 20)
    assert np.allclose(image.spacing_mm, (3, 1, 2))


@pytest.mark.parametrize(
    ("prefix", "low", "modality"),
    [("case", -1000, "CT"), ("case", 0, ""), ("patient_t1", 0, "MR"), ("ct-thorax", 0, "CT"), ("act", 0, "")],
)
def test_modality_is_read_from_values_and_names(studies, prefix, low, modality):
    print_ = take_fingerprint(StudyStore(studies(count=1, labelled=0, prefix=prefix, low=low)), ["a"])
    assert print_.modalities == [modality]


def test_the_file_is_complete_explained_and_loads(studies):
    file, plan = plan_of(studies())
    config = load_config(file)
    build_network(config)
    assert config.label_values == {"near": 1, "far": 2}
    content = yaml.safe_load(file.read_text())
    assert set(content) == set(ModelConfig.model_fields) - {"name", "codes", "colours"}
    assert set(content["training"]) == set(TrainingConfig.model_fields)
    lines = file.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if ": " in line and not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("# "), line
    assert all(choice.reason for choice in plan.choices)


def test_one_image_without_a_label_is_enough(studies):
    file, plan = plan_of(studies(count=1, labelled=0))
    assert load_config(file).patch_size
    assert any("Nothing is labelled yet" in note for note in plan.notes)


def test_odd_names_of_labels_survive_yaml(studies):
    file, _ = plan_of(studies(labelled=0), labels="no,1.5,Größe #2: a")
    assert load_config(file).labels == ("no", "1.5", "Größe #2: a")


def test_unreadable_images_and_labels_are_left_out_and_named(studies):
    folder = studies(count=3, labelled=3)
    (folder / "broken.nii.gz").write_bytes(b"not an image")
    save(np.zeros((3, 3, 3), np.uint8), folder / "labels" / "final" / "case_0.nii.gz")
    save(np.zeros((24, 20, 18, 2), np.int16), folder / "two.nii.gz")
    _, plan = plan_of(folder)
    notes = "\n".join(plan.notes)
    assert "3 images read, 2 with a label" in notes
    assert "image broken: " in notes
    assert "image two: has 2 channels, most images have 1" in notes
    assert "label of case_0: its label" in notes


def test_pictures_are_planned_in_2d_and_in_colour_if_all_have_it(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "studies").mkdir()
    for index in range(2):
        pixels = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "studies" / f"{index}.png")
    config = load_config(plan_of(tmp_path / "studies", "a")[0])
    assert (config.dimensions, config.channels, config.spacing_mm) == (2, 3, None)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "studies" / "grey.png")
    assert load_config(plan_of(tmp_path / "studies", "a", force=True)[0]).channels == 1


# What is refused


def test_names_that_no_label_has_are_refused_with_those_there_are(studies):
    folder = studies()
    label = folder / "labels" / "final" / "case_0.nii.gz"
    store = StudyStore(folder)
    for image_id in ("case_0", "case_1"):
        store.save_label(image_id, str(label), "final", {"label_info": [{"name": "liver"}, {"name": "spleen"}]})
    with pytest.raises(BadInput, match=r"'livr'.*are named liver, spleen"):
        plan_of(folder, "livr")
    assert load_config(plan_of(folder, "spleen")[0]).labels == ("spleen",)


def test_values_beyond_the_names_are_refused(studies):
    with pytest.raises(BadInput, match="its label has the value 2, the model has 1 labels"):
        plan_of(studies(), "near")


def test_a_folder_without_images_or_with_broken_ones_alone_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="no image in the studies folder"):
        plan_of(empty)
    (empty / "a.nii.gz").write_bytes(b"no")
    with pytest.raises(BadInput, match="none of the 1 images can be read; the first, a: "):
        plan_of(empty)


def test_nothing_is_overwritten_unless_forced(studies):
    folder = studies()
    file, _ = plan_of(folder)
    file.write_text("mine")
    with pytest.raises(Conflict, match="'mine' is taken"):
        plan_of(folder)
    assert file.read_text() == "mine"
    plan_of(folder, force=True)
    assert load_config(file)
    with pytest.raises(Conflict, match="'unet_hippocampus' is taken"):
        plan_of(folder, name="unet_hippocampus")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "Mine"}, "must match"),
        ({"labels": "a,a"}, "each label must be named once"),
        ({"labels": "a,"}, "must not be empty"),
        ({"network": "resnet"}, "'resnet' is not one of attention_unet, residual_unet, segresnet, unet, vnet"),
        ({"network": "segresnet"}, "'segresnet' can't be planned, only attention_unet, residual_unet, unet, vnet"),
        ({"configs": Path("/proc/nowhere")}, "can't be written to"),
    ],
)
def test_wrong_options_are_refused(studies, changes, fault):
    with pytest.raises(BadInput, match=fault):
        plan_of(studies(count=1), **changes)


def test_labels_that_belong_to_no_image_are_named(studies):
    folder = studies(count=2)
    final = folder / "labels" / "final"
    for label in sorted(final.iterdir()):
        label.rename(final / label.name.replace(".nii.gz", "_seg.nii.gz"))
    _, plan = plan_of(folder)
    (note,) = [note for note in plan.notes if "Labels/final" in note]
    assert "2 file(s) left out, such as 'case_0_seg.nii.gz'" in note


def test_studies_must_be_a_folder(tmp_path):
    with pytest.raises(NotFound, match="is not a folder"):
        plan_of(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not a DICOMweb server"):
        plan_model("http://pacs/", "a", "mine", tmp_path, "unet", "cpu", False)


def test_the_command_prints_what_it_chose_and_where(studies, tmp_path):
    options = ["--studies", str(studies()), "--labels", "near,far", "--name", "mine", "--device", "cpu"]
    result = CliRunner().invoke(app, ["plan", *options, "--configs", str(tmp_path / "models")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "patch_size" in result.output
    assert "2 images read, 2 with a label" in result.output
    assert f"--configs {tmp_path / 'models'}" in result.output
    assert (tmp_path / "models" / "mine.yaml").is_file()
