"""Active-learning strategies: which case is handed out next; one small file each with one registration."""

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies

__all__ = ["CaseStrategy", "Choice", "Pool", "strategies"]
