"""``python -m labelrounds`` is the ``labelrounds`` command."""

from labelrounds.cli import main

main()
