"""What a strategy of choosing cases is worth: `python -m tests.benchmarks.active_learning --tier A`."""
