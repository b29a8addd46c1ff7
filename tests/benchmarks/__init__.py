"""Programs that measure, run by hand with `make bench`; each writes its figures to `results/`."""

import monai  # noqa: F401 - whole, before labelrounds.host: the peers need parts that it leaves out
