"""Which slots hold a beginning of which text."""

from serve.engine.slot_scheduler import PrefixCache, chain

SYSTEM = [5, 6, 7, 8, 9, 1, 2, 3]  # two chunks of four


def test_chains_differ_where_texts_do() -> None:
    same = chain("a", SYSTEM, 4)
    assert same == chain("a", [*SYSTEM, 1, 2], 4)
    assert same[0] == chain("a", [*SYSTEM[:4], 0, 0, 0, 0], 4)[0]
    assert same[1] != chain("a", [1, *SYSTEM[1:]], 4)[1]
    assert not set(same) & set(chain("b", SYSTEM, 4))


def test_prefixes_forget() -> None:
    prefixes, digests = PrefixCache(2), chain("", SYSTEM, 4)
    prefixes.reset(0, digests)
    prefixes.reset(1, digests[:1])
    assert prefixes.find(digests, []) == (0, 2)
    assert prefixes.find(digests[:1], [1]) == (1, 1)
    prefixes.reset(0)
    assert prefixes.find(digests, []) == (1, 1)
    prefixes.reset(1)
    assert prefixes.find(digests, []) == (-1, 0)
