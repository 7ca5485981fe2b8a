"""Which letter a chat model means, by the rules behind the published chat scores.

The rules are the original's, oddities included, which the tests name: the texts of the choices
become their letters first, so a letter may come from the question's words; "not A" is read as no
choice of A only where the negation stands near the word answer; with no letter at all the choice
is taken whose text is most like the reply, so no reply is ever without a choice.
"""

import re
from collections.abc import Mapping, Sequence

LETTERS = "ABCD"
_LETTER = f"([{LETTERS}])"
_OTHER = f"[^{LETTERS}]"

_ENGLISH = [
    # the answer is B; choice: B; choose B. Not: the answer isn't B
    re.compile(
        r"(?:[Cc]hoose|(?:[Aa]nswer|[Cc]hoice)"
        rf"(?!{_OTHER}{{0,20}}?(?:n't|not)){_OTHER}{{0,10}}?\b(?:|is|:|be)\b)"
        rf"{_OTHER}{{0,20}}?\b{_LETTER}\b"
    ),
    # B is correct. Not: B is not correct
    re.compile(
        rf"\b{_LETTER}\b(?!{_OTHER}{{0,8}}?(?:n't|not){_OTHER}{{0,5}}?(?:correct|right))"
        rf"{_OTHER}{{0,10}}?\b(?:correct|right)\b"
    ),
    re.compile(rf"^{_LETTER}(?:[.,:]|$)"),
    re.compile(rf"(?<![a-zA-Z]){_LETTER}(?![a-zA-Z=])"),  # the first that stands alone
]
_CHINESE = [
    re.compile(
        r"(?:(?:选|选择|选定)[：:]?\s*"
        rf"|(?:答案|选项)(?!{_OTHER}{{0,10}}?[不非]{_OTHER}{{0,10}}?[是选为：:】])"
        rf"{_OTHER}{{0,10}}?[是选为：:】]{_OTHER}{{0,10}}?)"
        rf"{_LETTER}(?:选项)?(?:[)。.，,．、{LETTERS}：:）]|$)"
    ),
    re.compile(
        rf"{_LETTER}(?:选?项)?(?!{_OTHER}{{0,4}}?[不非]{_OTHER}{{0,4}}?(?:正确|对[的，。：]|符合))"
        rf"{_OTHER}{{0,4}}?(?:正确|对[的，。：]|符合)"
    ),
    re.compile(rf"^[(（]?{_LETTER}(?:[。)）.，,．：:]|$)"),
    re.compile(rf"(?<![a-zA-Z]){_LETTER}(?![a-zA-Z=])"),
]


def english(reply: str, choices: Mapping[str, str]) -> str:
    """The letter of an English reply; choices: letter -> text."""
    for letter, text in _longest_first(choices):
        reply = re.sub(re.escape(text.rstrip(".")), letter, reply, flags=re.IGNORECASE)
    return _first(_ENGLISH, reply) or _most_alike(reply, choices)


def chinese(reply: str, question: str, choices: Mapping[str, str]) -> str:
    """The letter of a Chinese reply, which may repeat the question's last sentence."""
    parts = question.rstrip("。").split("。")[-1].split("_")  # before and after a blank to fill
    if len(parts[0].strip()) > 4:
        reply = reply.replace(parts[0], "答案是")
    if len(parts[-1].strip()) > 4:
        reply = reply.replace(parts[-1], "")
    for letter, text in _longest_first(choices):
        reply = reply.replace(text.rstrip("。"), letter)
    return _first(_CHINESE, reply) or _most_alike(reply, choices)


def _longest_first(choices: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(choices.items(), key=lambda choice: len(choice[1]), reverse=True)


def _first(patterns: Sequence[re.Pattern[str]], reply: str) -> str | None:
    found = (pattern.search(reply) for pattern in patterns)
    return next((match[1] for match in found if match), None)


def _most_alike(reply: str, choices: Mapping[str, str]) -> str:
    from rapidfuzz import fuzz, process, utils

    best = process.extractOne(
        reply, list(choices.values()), scorer=fuzz.WRatio, processor=utils.default_process
    )
    return list(choices)[best[2]]
