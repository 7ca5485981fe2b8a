"""Files as accidents leave them: seeded changes of JSON, of texts and of bytes."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

# values of every type, and sizes that nothing has
STRANGE: tuple[Any, ...] = (None, True, False, 0, -1, 3, 7.5, 10**30, 1e300, "", "x", "１")
STRANGE += ([], [1], ["x"], {}, {"x": 1})
BYTES = (b"\x00", b"\xff", b"{", b"}", b'"', b"[" * 2000, b"9" * 600, b"\xe2\x80", b"\n", b"%}")


def of_json(content: Any, chance: random.Random) -> tuple[bytes, list[Any], Any]:
    """JSON with one value replaced, dropped or renamed: its bytes, the path, and what is there."""
    made = copy.deepcopy(content)
    *way, last = chance.choice(list(_paths(made)))
    place = made
    for step in way:
        place = place[step]
    new: Any = chance.choice(STRANGE)
    kind = chance.randrange(8)
    if kind == 0:
        del place[last]
        new = None
    elif kind == 1 and isinstance(place, dict):
        place[str(last) + "_"] = place.pop(last)
        new = None
    elif kind == 2:
        place[last] = new = [place[last]]
    else:
        place[last] = new
    return json.dumps(made).encode(), [*way, last], new


def of_bytes(content: bytes, chance: random.Random) -> bytes:
    """Cut off, a stretch left out or doubled, something strange put in, or a bit flipped."""
    start, stop = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    kind = chance.randrange(5)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[stop:]
    if kind == 2:
        return content[:stop] + content[start:]
    if kind == 3:
        return content[:start] + chance.choice(BYTES) + content[start:]
    flipped = bytearray(content or b"\x00")
    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _paths(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """To every value; of a long list or table, to some."""
    steps = list(content if isinstance(content, dict) else range(len(content)))
    for step in steps[:6] + steps[-6:] if len(steps) > 60 else steps:
        yield (*way, step)
        if isinstance(content[step], dict | list):
            yield from _paths(content[step], (*way, step))
