"""What fits is kept, what was not used for longest goes, and a changed file is another file."""

import random
import threading

import pytest
import torch

from labelrounds import memory_cache
from labelrounds.errors import BadInput
from labelrounds.memory_cache import Memory, MemoryCache

ENTRY = 1000  # what an entry itself is taken to cost


def test_what_was_not_used_for_longest_makes_room():
    cache = MemoryCache(3 * (ENTRY + 100))
    for name in "abc":
        cache.put(name, name.upper(), 100)
    assert cache.get("a") == "A"
    cache.put("d", "D", 100)
    assert [cache.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    assert cache.used == cache.budget


def test_a_value_over_the_budget_is_not_kept_and_pushes_nothing_out():
    cache = MemoryCache(5000)
    cache.put("small", 1, 100)
    cache.put("large", 2, 5000)
    assert (cache.get("small"), cache.get("large")) == (1, None)


def test_a_value_that_is_put_again_counts_once():
    cache = MemoryCache(10_000)
    for size in (100, 3000, 200):
        cache.put("a", size, size)
    assert cache.get("a") == 200
    assert cache.used == ENTRY + 200


def test_a_value_that_has_outgrown_the_budget_does_not_leave_its_former_self():
    cache = MemoryCache(5000)
    cache.put("a", "old", 100)
    cache.put("a", "new", 9000)
    assert cache.get("a") is None
    assert cache.used == 0


def test_everything_but_one_can_be_dropped():
    cache = MemoryCache(10_000)
    assert not cache.clear()
    for name in "abc":
        cache.put(name, name, 100)
    assert cache.clear(but="b")
    assert [cache.get(name) for name in "abc"] == [None, "b", None]
    assert not cache.clear(but="b")
    assert cache.clear() and cache.used == 0


def test_many_threads_leave_the_count_right():
    cache = MemoryCache(20 * ENTRY)

    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(2000):
            name = chance.randrange(40)
            if chance.random() < 0.5:
                cache.put(name, (name, chance.random()), chance.randrange(2 * ENTRY))
            else:
                found = cache.get(name)
                assert found is None or found[0] == name
            assert cache.used <= cache.budget

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.clear()
    assert cache.used == 0


@pytest.mark.parametrize(("given", "expected"), [("", 2 * 10**9), ("0.5", 5 * 10**8), ("0", 0)])
def test_the_budget_is_a_quarter_of_what_is_free_or_what_is_said(monkeypatch, given, expected):
    monkeypatch.setenv("LABELROUNDS_MEMORY_GB", given)
    monkeypatch.setattr(memory_cache, "free_bytes", lambda device: 8 * 10**9)
    memory, cpu, gpu = Memory(), torch.device("cpu"), torch.device("cuda:0")
    assert memory.images(cpu).budget + memory.answers.budget == expected
    assert memory.answers.budget <= memory.images(cpu).budget
    assert memory.images(gpu).budget == expected
    assert memory.images(gpu) is memory.images(torch.device("cuda:0"))


@pytest.mark.parametrize("given", ["lots", "-1", "nan"])
def test_a_budget_that_is_none_is_an_error_that_says_so(monkeypatch, given):
    monkeypatch.setenv("LABELROUNDS_MEMORY_GB", given)
    with pytest.raises(BadInput, match=f"LABELROUNDS_MEMORY_GB '{given}' is not a number of gigabytes, 0 or more"):
        Memory()
