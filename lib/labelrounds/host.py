"""Make MONAI Label 0.8.5 importable, and that quickly; import this before anything of ``monailabel`` or ``monai``.

The repairs of the host that have to happen at import time stand here, each with the condition under which it
may be deleted. Repairs of behaviour are overrides in ``app.py``, ``server.py``, ``jobs.py`` and ``store.py``.
"""

import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib.abc import MetaPathFinder

_PYDICOM_SHIM = "pydicom._storage_sopclass_uids"
UNUSED = frozenset({"gdown", "ignite", "matplotlib", "mlflow", "pandas", "scipy", "skimage", "sklearn", "torchvision"})


def supply_pydicom_module() -> None:
    """Provide the private module of pydicom 2 that ``pydicom_seg`` 0.4.1 imports and pydicom 3 dropped.

    ``pydicom_seg`` asks it for ``SegmentationStorage`` alone. Delete this once monailabel depends on a
    ``pydicom_seg`` (or highdicom) that imports with pydicom 3.
    """
    if _PYDICOM_SHIM in sys.modules or importlib.util.find_spec(_PYDICOM_SHIM) is not None:
        return
    import pydicom.uid

    shim = types.ModuleType(_PYDICOM_SHIM)
    shim.__dict__["SegmentationStorage"] = pydicom.uid.SegmentationStorage
    sys.modules[_PYDICOM_SHIM] = shim


class _Absent(MetaPathFinder):
    """Says that packages are not installed."""

    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> None:
        if fullname.partition(".")[0] in self._packages:
            raise ModuleNotFoundError(f"{fullname} is left out while labelrounds imports MONAI", name=fullname)


def import_monai() -> None:
    """Import MONAI without what it loads, wherever it is installed, for parts that are of no use here.

    That is half of a server's start and a third of its memory. Those parts (handlers of MLflow and Ignite, a few
    transforms and metrics) raise MONAI's ``OptionalImportError`` in this process; a program that wants them imports
    ``monai`` before ``labelrounds``. The packages themselves can be imported as ever. Delete this once MONAI imports
    them when they are first used.
    """
    if "monai" in sys.modules:
        return
    finder = _Absent(UNUSED)
    sys.meta_path.insert(0, finder)
    try:
        import monai  # noqa: F401
    finally:
        sys.meta_path.remove(finder)


supply_pydicom_module()
import_monai()
