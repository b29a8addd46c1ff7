"""The host is imported without what nobody uses here, which stays there for whoever asks for it."""

import subprocess
import sys

from labelrounds.host import UNUSED

_IMPORT = "import sys; import {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


def imported(*modules: str) -> set[str]:
    program = _IMPORT.format(", ".join(modules))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_server_loads_no_package_that_it_has_no_use_for():
    assert {"monai", "monailabel", "torch"} <= (packages := imported("labelrounds.server"))
    assert packages & UNUSED == set()


def test_the_packages_can_be_imported_all_the_same():
    assert {"matplotlib", "scipy"} <= imported("labelrounds.host", "scipy.ndimage", "matplotlib")


def test_a_program_that_wants_all_of_monai_imports_it_first():
    assert {"ignite", "scipy"} <= imported("monai", "labelrounds.host")
