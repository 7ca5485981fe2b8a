"""The little Python of Hugging Face's agents, with tools that only say what they would do.

Names are looked up as their interpreter did, the most alike where none is the same. `agent` runs
this text in the sandbox, with a call of `main` behind it: loops may be long and texts large.
"""

import ast
import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

State = dict[str, Any]


class Refused(ValueError):
    """What this Python does not have; what was there before it stays."""


def _is(kind: str, value: Any) -> Any:
    if kind not in value:
        raise ValueError(f"{value} is no {kind}")
    return value


TOOLS: dict[str, Callable[..., str]] = {
    "text_classifier": lambda text, labels: f"which of {labels} is {text}",
    "translator": lambda text, src_lang, tgt_lang: f"{text} out of {src_lang} in {tgt_lang}",
    "text_reader": lambda text: f"the sound of {text}",
    "summarizer": lambda text: f"{text} in short",
    "transcriber": lambda audio: f"{_is('sound', audio)} in letters",
    "image_generator": lambda prompt: f"an image of {prompt}",
    "image_captioner": lambda image: f"what {_is('image', image)} shows",
    "image_transformer": lambda image, prompt: f"{_is('image', image)} after {prompt}",
    "text_qa": lambda text, question: f"{question} asked of {text}",
    "text_downloader": lambda url: f"what is at {url}",
    "image_qa": lambda image, question: f"{question} asked of {_is('image', image)}",
    "video_generator": lambda prompt, seconds=2: f"a film of {prompt}",
    "document_qa": lambda image, question: f"{question} asked of the document {image}",
    "image_segmenter": lambda image, prompt: f"where {prompt} is in {image}",
}
_PYTHON: dict[str, Callable[..., Any]] = {
    "print": lambda *values, **how: None,
    **{"range": range, "float": float, "int": int, "bool": bool, "str": str},
}


class _Evaluator:
    def __init__(self, functions: Mapping[str, Callable[..., Any]], state: State):
        self.functions, self.state = functions, state

    def value(self, node: ast.AST) -> Any:
        evaluate = getattr(self, f"_{type(node).__name__.lower()}", None)
        if evaluate is None:
            raise Refused(f"{type(node).__name__} is not supported")
        return evaluate(node)

    def last(self, nodes: list[ast.stmt]) -> Any:
        """The last value that is one."""
        values = [value for node in nodes if (value := self.value(node)) is not None]
        return values[-1] if values else None

    def _expr(self, node: ast.Expr) -> Any:
        return self.value(node.value)

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _formattedvalue(self, node: ast.FormattedValue) -> Any:
        return self.value(node.value)

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.value(part)) for part in node.values)

    def _list(self, node: ast.List) -> list[Any]:
        return [self.value(element) for element in node.elts]

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        keys = [self.value(key) for key in node.keys]  # type: ignore[arg-type]
        return dict(zip(keys, [self.value(value) for value in node.values], strict=True))

    def _assign(self, node: ast.Assign) -> Any:
        value = self.value(node.value)
        names: Any = node.targets
        if len(names) > 1 and len(value) != len(names):
            raise Refused(f"{len(value)} values for {len(names)} names")
        for name, one in zip(names, value if len(names) > 1 else [value], strict=True):
            self.state[name.id] = one
        return value

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in self.functions:
            raise Refused(f"{name or 'this'} is no tool")
        values = [self.value(value) for value in node.args]
        named: dict[Any, Any] = {word.arg: self.value(word.value) for word in node.keywords}
        return self.functions[name](*values, **named)

    def _name(self, node: ast.Name) -> Any:
        if node.id in self.state:
            return self.state[node.id]
        if alike := difflib.get_close_matches(node.id, list(self.state)):
            return self.state[alike[0]]
        raise Refused(f"{node.id} is not defined")

    def _subscript(self, node: ast.Subscript) -> Any:
        index, value = self.value(node.slice), self.value(node.value)
        if isinstance(value, list | tuple):
            return value[int(index)]
        if index in value:
            return value[index]
        known = list(value) if isinstance(index, str) and isinstance(value, Mapping) else []
        if alike := difflib.get_close_matches(str(index), known):
            return value[alike[0]]
        raise Refused(f"{index} is not in it")

    def _if(self, node: ast.If) -> Any:
        return self.last(node.body if self._holds(node.test) else node.orelse)

    def _holds(self, test: Any) -> bool:
        """A comparison; anything else has no `ops`, which is an error as in the original."""
        if len(test.ops) > 1:
            raise Refused("several comparisons in one")
        one, other = self.value(test.left), self.value(test.comparators[0])
        compare = _COMPARISONS.get(type(test.ops[0]))
        if compare is None:
            raise Refused("this comparison is not supported")
        return compare(one, other)

    def _for(self, node: ast.For) -> Any:
        result, target = None, cast(ast.Name, node.target)
        for value in self.value(node.iter):
            self.state[target.id] = value
            if (found := self.last(node.body)) is not None:
                result = found
        return result


_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: lambda one, other: one == other,
    ast.NotEq: lambda one, other: one != other,
    ast.Lt: lambda one, other: one < other,
    ast.LtE: lambda one, other: one <= other,
    ast.Gt: lambda one, other: one > other,
    ast.GtE: lambda one, other: one >= other,
    ast.Is: lambda one, other: one is other,
    ast.IsNot: lambda one, other: one is not other,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}


def evaluate(code: str, state: State) -> Any:
    """The last value of a program that is one, up to what is refused; None where it fails."""
    functions = _PYTHON | {name: tool for name, tool in TOOLS.items() if name in code}
    evaluator, result = _Evaluator(functions, state), None
    try:
        for node in ast.parse(code).body:
            try:
                value = evaluator.value(node)
            except Refused:
                break
            result = result if value is None else value
    except Exception:
        return None
    return result


def score(steps: list[tuple[State, list[str]]], codes: list[str | None]) -> tuple[float, list[str]]:
    """What the last step's code gets, and the tools that it should use.

    steps: (variables, right codes, of which the first is meant where none gives the same) of each.
    """
    own: State = {}
    theirs: list[State] = [{} for _ in steps[0][1]]
    value, wanted, right = None, [], [""]
    for (given, right), code in zip(steps, codes, strict=True):
        own.update(given)
        value = None if code is None else evaluate(code, own)
        for state in theirs:
            state.update(given)
        wanted = [evaluate(one, state) for one, state in zip(right, theirs, strict=True)]
    found = value.values() if isinstance(value, dict) else [value]
    meant = next((one for want, one in zip(wanted, right, strict=True) if want in found), right[0])
    tools = [name for name in TOOLS if name in meant]
    if codes[-1] is None:
        return 0.0, tools
    if value in wanted:
        return 1.0, tools
    return (0.75 if any(one in wanted for one in found) else 0.3), tools


def main(steps: str, codes: str) -> None:
    print(json.dumps(score(json.loads(steps), json.loads(codes))))
