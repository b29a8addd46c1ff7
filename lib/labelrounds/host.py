"""Make MONAI Label 0.8.5 importable; import this before anything of ``monailabel``.

The repairs of the host that have to happen at import time stand here, each with the condition under which it
may be deleted. Repairs of behaviour are overrides in ``app.py``, ``server.py``, ``jobs.py`` and ``store.py``.
"""

import importlib.util
import sys
import types

_PYDICOM_SHIM = "pydicom._storage_sopclass_uids"


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


supply_pydicom_module()
