"""Long texts a stretch at a time: linear work, and no call into C that holds the interpreter long.

A server tokenises what strangers send beside its event loop. The calls below give way to other
threads between their stretches, whatever the text.
"""

import re
from collections.abc import Collection, Iterator
from unicodedata import combining, normalize

STRETCH = 1 << 14  # characters that one call looks at
SORTED = 1 << 10  # characters that are normalised at once: sorting marks is quadratic in them
LONGEST_RUN = 256  # combining marks behind one character that are surely normalised together

# Between these PATTERN always divides, whatever stands around them: it has no lookbehind, a letter
# or digit ends its match where no letter follows, and NFC leaves all of these as they are.
_DIVIDED = re.compile(r"(?<=[^\W_])[ \n,.，。]")


def nfc(text: str) -> str:
    """The NFC form of `text`, in linear time.

    Exactly that where at most LONGEST_RUN combining marks (canonical combining class not 0) follow
    one another. Longer runs are taken in parts, each normalised by itself: the same text always has
    the same result, but marks are neither sorted nor composed across parts.
    """
    if len(text) <= SORTED or text.isascii():
        return normalize("NFC", text)
    done, open_end = [], ""
    for start in range(0, len(text), SORTED):
        part = normalize("NFC", open_end + text[start : start + SORTED])
        end = len(part) - 1  # what follows can only change the last character and its marks
        while end > 0 and combining(part[end]):
            end -= 1
        if len(part) - end > LONGEST_RUN + 4:  # the character itself may decompose into four
            end = len(part)
        done.append(part[:end])
        open_end = part[end:]
    return "".join([*done, open_end])


def slices(text: str) -> Iterator[str]:
    """`text` in stretches, wherever that divides it."""
    return (text[start : start + STRETCH] for start in range(0, len(text), STRETCH))


def split(text: str, names: Collection[str]) -> list[str]:
    """Divide text at control tokens: the names stand alone, the longest first where two fit."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    pieces, start, at = [], 0, 0
    while at < len(text):
        # A name that begins within the stretch is seen whole.
        found = pattern.search(text, at, at + STRETCH + len(longest_first[0]))
        if found is None or found.start() >= at + STRETCH:
            at += STRETCH
        else:
            pieces += [text[start : found.start()], found[0]]
            start = at = found.end()
    return [*pieces, text[start:]]


def stretches(text: str) -> Iterator[str]:
    """`text` in parts of one to two stretches whose tokens, one after another, are the text's own.

    A part is longer where the text cannot be divided, such as a word of a million letters.
    """
    start = 0
    for end in range(STRETCH, len(text), STRETCH):
        if found := _DIVIDED.search(text, end, end + STRETCH):
            yield text[start : found.start()]
            start = found.start()
    yield text[start:]
