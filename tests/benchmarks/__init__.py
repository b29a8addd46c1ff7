"""Programs that measure, run by hand with `make bench`; each writes its figures to `results/`."""
