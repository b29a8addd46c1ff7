"""Read mutated headers in a sandbox and compare what is read with another library: ``python -m tests.fuzz.headers``.

Writes ``results/headers.json``: how often each status came, and how many of the images read were compared.
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
from PIL import Image as Picture

from labelrounds.errors import LabelRoundsError
from labelrounds.images import Image
from labelrounds.sandbox import Sandbox
from labelrounds.settings import ServerSettings
from tests.fuzz.files import ENDINGS, mutated_files

ALLOWED = (400, 413, 415)
RESULTS = Path(__file__).parent / "results" / "headers.json"


def fuzz(sandbox: Sandbox, ending: str, count: int) -> Counter[str]:
    """Read so many mutated files and count the outcomes.

    Raises:
        AssertionError: a status that is no fault of the file, an error without a sentence, a wrong image.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for path in mutated_files(ending, count, Path(folder)):
            try:
                image = sandbox.read("read_image", path)
            except LabelRoundsError as error:
                assert error.status in ALLOWED, error
                assert len(str(error)) > len(path.name) + 5
                outcomes[str(error.status)] += 1
                outcomes["dead readers"] += "process that read it" in str(error)
                continue
            outcomes["read"] += 1
            outcomes["compared"] += is_right(image, path)
            geometry = sandbox.read("read_geometry", path)
            assert geometry.shape == image.shape and np.allclose(geometry.affine, image.affine, atol=1e-3)
    return +outcomes


def is_right(image: Image, path: Path) -> bool:
    """Tell whether another library reads the file too.

    Raises:
        AssertionError: it does, and finds other voxels.
    """
    assert np.isfinite(image.affine).all() and np.isfinite(image.array).all()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            expected = voxels_of(path)
        except Exception:  # it refuses the file, in whatever way
            return False
    if path.suffix == ".tif" and image.array.shape[0] == 4:
        return False  # libtiff's own reading of what a directory leaves open
    if expected is None or not np.isfinite(expected).all():
        return False
    assert image.array.size == expected.size, (image.array.shape, expected.shape)
    found = np.moveaxis(image.array, 0, -1).reshape(expected.shape, order="F")
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-3), f"{path}: other voxels"
    return True


def voxels_of(path: Path) -> np.ndarray | None:
    """Return what nibabel, pynrrd, pydicom or Pillow finds."""
    if path.name.endswith((".nii", ".nii.gz")):
        return np.asanyarray(nib.load(path).dataobj).astype(np.float64)
    if path.suffix == ".nrrd":
        return nrrd.read(str(path), index_order="F")[0].astype(np.float64)
    if path.suffix == ".dcm":
        data = pydicom.dcmread(path)
        return data.pixel_array.T * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    if path.suffix == ".tif":
        return np.asarray(Picture.open(path)).T.astype(np.float64)
    return None


def main() -> None:
    """Fuzz every format and write down the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    logging.disable(logging.WARNING)
    sandbox = Sandbox(ServerSettings())
    try:
        outcomes = {ending: dict(sorted(fuzz(sandbox, ending, count).items())) for ending in ENDINGS}
    finally:
        sandbox.close()
    RESULTS.write_text(json.dumps({"files of each format": count, "outcomes": outcomes}, indent=2) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
