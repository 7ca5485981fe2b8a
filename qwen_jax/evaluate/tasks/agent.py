"""Hugging Face's agent: does a chat model name the right tools, use them, and to the right end.

Their evaluation of transformers 4.30 to 4.33, whose problems and descriptions of tools are read
from its files, not run. In run mode each problem is asked by itself, in chat mode one step of it
after another, each step behind the model's own replies to those before. A reply in another form,
which ended their evaluation, is one without code.
"""

import ast
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from qwen_jax.evaluate.tasks import agent_program
from qwen_jax.evaluate.tasks.data import Data, NoData, field, packaged, text
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.files import strict_json
from qwen_jax.sandbox.program import run
from qwen_jax.text.tokenizer import Tokenizer

_TOOLS_SOURCE = (
    "https://pypi.org/project/transformers/4.33.1 (the folder transformers/tools of its wheel)"
)
_PROMPTS_SOURCE = "https://huggingface.co/datasets/huggingface-tools/default-prompts"
_SPACES = ("image-transformation", "text-download", "text-to-image", "text-to-video")
_SPACES_SOURCE = "https://huggingface.co/spaces/huggingface-tools/"
_MESSAGE = "\n_HUMAN_: {}\n\n_ASSISTANT_: "
# words with a meaning to the original's tokenizer, which its agent spelt in another way
_SPELT = (("Human:", "_HUMAN_:"), ("Assistant:", "_ASSISTANT_:"))
_SECONDS = 5
Steps = Sequence[tuple[dict[str, str], list[str]]]


# --- their files ----------------------------------------------------------------------------------
def _file(data: Data, name: str) -> Path:
    """Of the data, else of an installed transformers of that time."""
    places = [f"{folder}tools/{name}" for folder in ("", "transformers/", "src/transformers/")]
    try:
        return data.find("hfagent", *places, source=_TOOLS_SOURCE)
    except NoData:
        if found := packaged("transformers", f"tools/{name}"):
            return found
        raise


def _assigned(path: Path, name: str) -> ast.expr:
    """What a module's variable is set to."""
    for node in ast.parse(text(path)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise ValueError(f"{path} sets no {name}; it is another version's")


def _literal(path: Path, node: ast.expr) -> Any:
    """Lists, texts, and calls of Problem as dictionaries."""
    if isinstance(node, ast.List):
        return [_literal(path, one) for one in node.elts]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem":
        return {word.arg: _literal(path, word.value) for word in node.keywords}
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{path} has {ast.unparse(node)[:60]!r}, expected a text") from None


def descriptions(data: Data) -> str:
    """A line for each tool: those of the library, then those of the hub."""
    base = _file(data, "base.py")
    classes = {}
    for file in sorted(base.parent.glob("*.py")):
        for node in ast.parse(text(file)).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = {
                    ast.unparse(one.targets[0]): one.value.value
                    for one in node.body
                    if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant)
                }
    told = [
        (base, classes.get(name, {}))
        for name in _literal(base, _assigned(base, "TASK_MAPPING")).values()
    ]
    for space in _SPACES:
        file = data.find("hfagent", f"{space}/tool_config.json", source=_SPACES_SOURCE + space)
        told.append((file, strict_json.read(file)))
    found = {field(file, one, "name"): field(file, one, "description") for file, one in told}
    if found.keys() != agent_program.TOOLS.keys():
        raise ValueError(
            f"{base.parent} and the hub's tools are {', '.join(sorted(found))}, expected "
            f"{', '.join(sorted(agent_program.TOOLS))}"
        )
    return "\n".join(f"- {name}: {description}" for name, description in found.items())


def _template(data: Data, mode: str) -> str:
    name = f"{mode}_prompt_template.txt"
    path = data.find("hfagent", name, f"default-prompts/{name}", source=_PROMPTS_SOURCE)
    return text(path).replace("<<all_tools>>", descriptions(data))


def _spelt(prompt: str) -> str:
    for word, other in _SPELT:
        prompt = prompt.replace(word, other)
    return prompt


def _phrasings(problem: dict[str, Any]) -> list[str]:
    return [problem["task"]] if isinstance(problem["task"], str) else problem["task"]


def _step(problem: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(its variables, right codes)."""
    given, right = problem["inputs"], problem["answer"]
    if isinstance(given, list):
        given = {name: f"<<{name}>>" for name in given}
    return given, [right] if isinstance(right, str) else right


# --- questions ----------------------------------------------------------------------------------
def _run_questions(data: Data) -> Iterator[Question]:
    path = _file(data, "evaluate_agent.py")
    template = _template(data, "run")
    for number, problem in enumerate(_literal(path, _assigned(path, "EVALUATION_TASKS"))):
        for way, task in enumerate(_phrasings(problem)):
            prompt = _spelt(template.replace("<<prompt>>", task))
            facts = {"steps": [_step(problem)], "messages": []}
            yield Question(f"{number}/{way}", prompt, _step(problem)[1][0], facts=facts)


def _chat_questions(data: Data) -> Iterator[Question]:
    path = _file(data, "evaluate_agent.py")
    template = _spelt(_template(data, "chat"))
    for number, chat in enumerate(_literal(path, _assigned(path, "EVALUATION_CHATS"))):
        for way in range(len(_phrasings(chat[0]))):
            messages = [_MESSAGE.format(_spelt(_phrasings(problem)[way])) for problem in chat]
            steps = [_step(problem) for problem in chat]
            for at, (_, right) in enumerate(steps, 1):
                facts = {"steps": steps[:at], "messages": messages[1:at]}
                prompt = template + messages[0]
                yield Question(f"{number}/{way}/{at}", prompt, right[0], facts=facts)


def _replies(question: Question, said: str) -> list[str]:
    """What the model said, message by message."""
    found = []
    for message in question.facts["messages"]:
        reply, there, rest = said.partition(f"\n{message}")
        if not there:
            break
        found.append(reply)
        said = rest
    return [*found, said]


def turn(question: Question, said: str, reply: str) -> tuple[str, bool]:
    """The dialogue's next message stands behind each reply."""
    said += _cut(reply, "_HUMAN_:", "=====")
    messages, done = question.facts["messages"], len(_replies(question, said))
    if done > len(messages):
        return said, False
    return f"{said}\n{messages[done - 1]}", True


# --- judges -------------------------------------------------------------------------------------
class Answer(NamedTuple):
    explanation: str
    code: str | None


def _cut(reply: str, *stops: str) -> str:
    for stop in stops:
        reply = reply.removesuffix(stop)
    return reply


def read_run(reply: str) -> Answer:
    """The explanation before "Answer:" and the code behind it."""
    explanation, *answers = f"I will use the following {_cut(reply, 'Task:')}".split("Answer:")
    if len(answers) != 1:
        return Answer(explanation, None)
    rows = answers[0].strip().split("\n")
    rows = rows[rows[0] in ("```", "```py", "```python") :]
    return Answer(explanation, "\n".join(rows[:-1] if rows[-1:] == ["```"] else rows))


def read_chat(reply: str) -> Answer:
    """The explanation before the first fence, and the code in it."""
    rows = reply.split("\n")
    fences = [at for at, row in enumerate(rows) if row.lstrip().startswith("```")]
    explanation = "\n".join(rows[: fences[0]] if fences else rows)
    if len(fences) < 2:
        return Answer(explanation, None)
    return Answer(explanation, "\n".join(rows[fences[0] + 1 : fences[1]]).strip())


@lru_cache(maxsize=512)  # each of three tasks asks
def _score(steps: str, codes: str) -> tuple[float, list[str]]:
    """What `agent_program` finds, in the sandbox; what ends it there is code that fails."""
    program = Path(agent_program.__file__).read_text("utf-8")
    passed, printed = run(f"{program}\nmain({steps!r}, {codes!r})\n", _SECONDS)
    if passed:
        points, tools = json.loads(printed)
        return points, tools
    *_, (_, right) = json.loads(steps)
    return 0.3, [name for name in agent_program.TOOLS if name in right[0]]


def judge(
    question: Question, completion: str, tokenizer: Tokenizer, *, mode: str, metric: str
) -> float:
    read = read_run if mode == "run" else read_chat
    answers = [
        read(reply.replace("_HUMAN_:", "Human:").replace("_ASSISTANT_:", "Assistant:"))
        for reply in _replies(question, completion)
    ]
    unsaid = len(question.facts["steps"]) - len(answers)  # the window was full
    answers += [Answer("", None)] * unsaid
    codes = [answer.code for answer in answers]
    points, wanted = _score(json.dumps(question.facts["steps"]), json.dumps(codes))
    if metric == "code":
        return points
    said, mark = (answers[-1].explanation, "`") if metric == "selection" else (codes[-1] or "", "")
    found = {name for name in agent_program.TOOLS if f"{mark}{name}{mark}" in said}
    return max(0.0, 1 - 0.25 * len(found.symmetric_difference(wanted)))


METRICS = {"selection": "tools named", "used": "tools used", "code": "code"}
TASKS = [
    Task(
        f"agent_{mode}_{metric}",
        f"HF agent, {mode} mode: {title}",
        "chat",
        _run_questions if mode == "run" else _chat_questions,
        partial(judge, mode=mode, metric=metric),
        metric=title,
        turn=turn if mode == "chat" else None,
        penalty=True,
        runs_code=True,
        exact=mode == "run",
    )
    for mode in ("run", "chat")
    for metric, title in METRICS.items()
]
