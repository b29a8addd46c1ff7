"""What is done in the background, as slowly as a test wants."""

import threading

PATIENCE_S = 30


class Held:
    """Notes what it is given and waits until it may go on; its answers, for each in turn, are given beforehand."""

    def __init__(self) -> None:
        self.seen, self.answers = [], {}
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, item):
        self.seen.append(item)
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE_S)
        answers = self.answers.get(item)
        answer = answers.pop(0) if answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def finish(self, count: int) -> list:
        """Let so many go on, and return all that were begun by then, and the one after."""
        for _ in range(count):
            self.go.release()
            assert self.begun.acquire(timeout=PATIENCE_S)
        return self.seen
