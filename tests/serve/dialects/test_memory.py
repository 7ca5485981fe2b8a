"""What is kept of answers is bounded in bytes and time, and nobody's but its owner's."""

from typing import Any

from serve.memory import Kept, Memory


def answer(id: str, size: int = 10) -> Kept:
    item = {"id": f"{id}-item", "text": "x" * size}
    return Kept({"id": id, "output": [item]}, [{"role": "user"}], 80 + size)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_owner_has_his_own() -> None:
    memory = Memory(10_000, 9)
    assert memory.keep("ann", "a", answer("a"))
    found: Any = memory.find("ann", "a")
    assert [item.get("id") for item in found.items] == [None, "a-item"]
    assert memory.item("ann", "a-item") is not None
    for owner in ("bob", ""):
        assert memory.find(owner, "a") is None
        assert memory.item(owner, "a-item") is None
        assert not memory.remove(owner, "a")
    assert memory.remove("ann", "a")
    assert memory.find("ann", "a") is None
    assert memory.item("ann", "a-item") is None


def test_it_holds_so_many_bytes() -> None:
    """Whoever has most loses the oldest; what fits nowhere is not kept."""
    size = answer("a").size
    memory = Memory(4 * size, 9)
    for owner, id in ("bob", "z"), ("ann", "a"), ("ann", "b"), ("ann", "c"):
        assert memory.keep(owner, id, answer(id))
    assert memory.keep("bob", "y", answer("y"))
    assert memory.find("ann", "a") is None
    assert memory.item("ann", "a-item") is None
    assert all(memory.find("ann", id) for id in "bc")
    assert all(memory.find("bob", id) for id in "zy")
    assert not memory.keep("bob", "x", answer("x", 9 * size))
    assert memory.find("bob", "x") is None
    assert not Memory(0, 9).keep("bob", "x", answer("x"))


def test_what_a_request_names_has_a_size() -> None:
    """A part of an answer counts as all of it; what is somebody else's, or gone, as nothing."""
    memory, size = Memory(10_000, 9), answer("a").size
    assert memory.keep("ann", "a", answer("a"))
    assert memory.size("ann", "a") == memory.size("ann", "a-item") == size
    assert memory.size("ann", "a", "a-item", "b") == 2 * size
    assert memory.size("bob", "a", "a-item") == memory.size("ann") == 0
    assert memory.remove("ann", "a")
    assert memory.size("ann", "a", "a-item") == 0


def test_what_replaces_an_answer_counts_once() -> None:
    memory = Memory(answer("a").size, 9)
    for _ in range(3):
        assert memory.keep("ann", "a", answer("a"))
        assert memory.find("ann", "a")


def test_it_forgets_in_time() -> None:
    clock = Clock()
    memory = Memory(10_000, 9, clock)
    memory.keep("ann", "a", answer("a"))
    clock.now = 5
    memory.keep("ann", "b", answer("b"))
    clock.now = 9
    assert memory.find("ann", "a") is None
    assert memory.item("ann", "a-item") is None
    assert memory.find("ann", "b")
    clock.now = 14
    assert not memory.remove("ann", "b")
