r"""Answers in LaTeX as MATH judges them: found in a solution, in one spelling, compared."""

import re

_UNITS = (
    "square ways integers dollars mph inches hours units points feet minutes digits cents degrees "
    "pounds meters meals edges students multiples"
).split()
_DROPPED = (r"\!", r"\,", r"\;", r"\ ", r"\left", r"\right", r"^\circ", r"^{\circ}", r"\$", r"\%")


def boxed(solution: str) -> str | None:
    r"""What the last \boxed{...} of a solution holds; None where there is none that closes."""
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        return None
    opened = solution.find("{", start)
    if solution[start:].startswith(r"\boxed ") and not 0 <= opened <= start + 7:
        return solution[start + 7 :].split("$")[0].strip()  # \boxed 5
    depth = 0
    for at in range(opened, len(solution)) if opened >= 0 else ():
        depth += {"{": 1, "}": -1}.get(solution[at], 0)
        if depth == 0:
            return solution[opened + 1 : at]
    return None


def final(completion: str) -> str:
    """The answer a completion gives: boxed, or in the sentence that says so, or its first one."""
    if (found := boxed(completion)) is not None:
        return found
    sentences = completion.split(". ") if "$" in completion else completion.split(".")
    said = [one for one in sentences if re.search("final answer|answer is", one.lower())]
    sentence = re.split(r"answer is:?", said[0] if said else sentences[0], flags=re.IGNORECASE)[-1]
    in_math = re.findall(r"\$([^$]+)\$", sentence)
    return (in_math[-1] if in_math else sentence).strip().rstrip(".")


def same(found: str, wanted: str) -> bool:
    return plain(found) == plain(wanted)


def plain(answer: str) -> str:
    """One spelling of an answer: no spaces, units, sizes of brackets or short fractions."""
    for dropped in _DROPPED:
        answer = answer.replace(dropped, "")
    answer = answer.replace("dfrac", "frac").replace("tfrac", "frac").replace("\n", "")
    answer = re.sub(r"\\(?:text|mbox|textbf|mathrm)\{([^{}]*)\}", r" \1 ", answer)
    answer = re.sub(rf"(?<![a-zA-Z])(?:{'|'.join(_UNITS)})(?![a-zA-Z])", "", answer)
    answer = re.sub(r"^\s*[a-zA-Z]\s*=", "", answer)  # x = 5
    answer = answer.replace(" ", "").rstrip(".").strip("$")
    answer = re.sub(r"(?<!\d)\.(\d)", r"0.\1", answer)
    answer = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", answer)
    answer = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", answer)
    answer = re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", answer)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
