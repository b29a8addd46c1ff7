"""Load ITK when the first image needs it, and once for all threads.

ITK's Python package loads its parts when they are first named. That takes two seconds, and where two threads name a
part at the same time one of them does not find it.
"""

import functools
import threading
from typing import Any

# Whatever this package uses of ITK.
_PARTS = (
    "Image",
    "VectorImage",
    "ImageFileReader",
    "ImageSeriesReader",
    "NiftiImageIO",
    "NrrdImageIO",
    "GDCMImageIO",
    "PNGImageIO",
    "JPEGImageIO",
    "TIFFImageIO",
    "PyBuffer",
    "array_from_image",
)
_lock = threading.Lock()


def load_itk() -> Any:
    """Return the ``itk`` module with every part that this package uses."""
    with _lock:
        return _loaded()


@functools.cache
def _loaded() -> Any:
    import itk

    for part in _PARTS:
        getattr(itk, part)
    return itk
