"""The real images that some tests and benchmarks read in place; where there are none, tests say so and are skipped."""

import os
from pathlib import Path

# Beside the checkout, or where the variable points.
DATA = Path(os.environ.get("LABELROUNDS_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real(name: str) -> Path:
    """Return a file or folder of the real images; the test that asks is skipped where it is missing."""
    import pytest  # which benchmarks do without

    if not (DATA / name).exists():
        pytest.skip(f"no real images: {DATA / name} is missing (set LABELROUNDS_DATA)")
    return DATA / name
