"""Active-learning strategies: which case is handed out next; one small file each with one registration."""

from labelrounds.strategies.base import candidates, strategies

__all__ = ["candidates", "strategies"]
