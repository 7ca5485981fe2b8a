"""A folder of data in the layout of each task's authors, a few questions each."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

SUBJECTS = {
    "mmlu": ("anatomy", "formal_logic"),
    "ceval": ("law", "logic"),
    "cmmlu": ("arts", "law"),
}


def _csv(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _lines(path: Path, *rows: Any) -> None:
    _text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _choices(root: Path) -> None:
    items = lambda word, count: [
        [f"{word}, {i}?", "one", "None", 'a "2"', "more", "ABCD"[i % 4]] for i in range(count)
    ]
    for subject in SUBJECTS["mmlu"]:
        _csv(root / f"mmlu/dev/{subject}_dev.csv", items("Which", 5))
        _csv(root / f"mmlu/test/{subject}_test.csv", items("What", 4))
    numbered = lambda rows: [[i, *row] for i, row in enumerate(rows)]
    for subject in SUBJECTS["ceval"]:
        header = ["id", "question", *"ABCD", "answer"]
        _csv(root / f"ceval/dev/{subject}_dev.csv", [header, *numbered(items("什么", 5))])
        _csv(root / f"ceval/val/{subject}_val.csv", [header, *numbered(items("哪个", 4))])
    for subject in SUBJECTS["cmmlu"]:
        header = ["", "Question", *"ABCD", "Answer"]
        _csv(root / f"cmmlu/dev/{subject}.csv", [header, *numbered(items("什么", 5))])
        _csv(root / f"cmmlu/test/{subject}.csv", [header, *numbered(items("哪个", 3))])


def _interpreter(root: Path) -> None:
    _text(root / "upload_file_clean/table.csv", "a,b\n1,2\n")
    turns = (
        "Look.<|im_end|>\n<|im_start|>assistant\nThought: I do.\nAction: code_interpreter\n"
        "Action Input:\n```py\nrows = 3\n```\nObservation: \nThought: Seen.<|im_end|>\n"
        "<|im_start|>user\nDraw.<|im_end|>\n<|im_start|>assistant\n"
    )
    _lines(
        root / "eval_code_interpreter_v1.jsonl",
        {"query": "Solve x - 1 = 0.", "tags": "all_ci,math"},
        {"query": turns, "tags": "all_ci,visualization"},
        {"query": "How many rows?", "tags": "all_ci,general"}
        | {"input_file_path": ["upload_file_clean/table.csv"], "lang": "en"},
    )


AGENT_TASKS = """
EVALUATION_TASKS = [
    Problem(
        task=["Read what `image` shows.", "Say what is " "on `image`."],
        inputs=["image"],
        answer=[
            "text_reader(image_captioner(image))",
            "text_reader(image_qa(image, question='What?'))",
        ],
    ),
    Problem(task="Film it.", inputs={"prompt": "a cat"}, answer="video_generator('a cat')"),
]
EVALUATION_CHATS = [
    [
        Problem(task=["Shorten `text`.", "Short."], inputs=["text"], answer="s = summarizer(text)"),
        Problem(task=["Read it.", "Human: aloud!"], inputs=[], answer="text_reader(s)"),
    ],
]
"""


def _agent(root: Path) -> None:
    local = "document_qa image_captioner image_qa image_segmenter transcriber summarizer".split()
    local += "text_classifier text_qa text_reader translator".split()
    for name in local:
        kind = f'class {name.title()}(PipelineTool):\n    description = ("Does" " {name}.")\n'
        _text(root / f"tools/{name}.py", f'{kind}    name = "{name}"\n    inputs = []\n')
    mapping = {name.replace("_", "-"): name.title() for name in local}
    _text(root / "tools/base.py", f"import torch\n\nTASK_MAPPING = {mapping}\n")
    _text(root / "tools/evaluate_agent.py", AGENT_TASKS)
    for place, name in (
        ("image-transformation", "image_transformer"),
        ("text-download", "text_downloader"),
        ("text-to-image", "image_generator"),
        ("text-to-video", "video_generator"),
    ):
        told = json.dumps({"name": name, "description": f"Does {name}.", "tool_class": "x"})
        _text(root / f"{place}/tool_config.json", told)
    end = "Task: <<prompt>>\n\nI will use the following"
    _text(root / "run_prompt_template.txt", f"Tools:\n<<all_tools>>\n\n{end}")
    _text(root / "chat_prompt_template.txt", "Human: Hi.\n\n<<all_tools>>\n=====")


def _translations(root: Path, name: str, count: int) -> None:
    said = {"en": "This is sentence number {}\n", "zh": "这是第{}个句子\n"}
    texts = {one: "".join(map(line.format, range(count))) for one, line in said.items()}
    for one, other in (("en", "zh"), ("zh", "en")):
        _text(root / f"sources/{name}.{one}-{other}.src.{one}", texts[one])
        _text(root / f"references/{name}.{one}-{other}.ref.A.{other}", texts[other])


@pytest.fixture(autouse=True)
def light_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code interpreter without its libraries, whose import takes seconds."""
    monkeypatch.setattr("qwen_jax.evaluate.tasks.interpreter._PACKAGES", ())
    monkeypatch.setattr("qwen_jax.evaluate.tasks.interpreter._IMPORTS", "\n")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    _choices(root)
    _lines(
        root / "gsm8k/test.jsonl",
        {"question": "What is 2 + 3?", "answer": "2 + 3 = 5\n#### 5"},
        {"question": "And 20,000 + 800?", "answer": "So many.\n#### 20,800"},
        {"question": "And 1 - 4?", "answer": "Less.\n#### -3"},
    )
    _text(root / "gsm8k/gsm8k_prompt.txt", "Question: 1 + 1?\nIt is 2.\nThe answer is 2\n")
    for task, target in (("date_understanding", "(B)"), ("navigate", "Yes")):
        examples = [{"input": f"Where, {i}?", "target": target} for i in range(2)]
        _text(root / f"bbh/bbh/{task}.json", json.dumps({"canary": "x", "examples": examples}))
        hint = f"do not train on this\n-----\nTell.\n\nQ: Where?\nA: So the answer is {target}."
        _text(root / f"bbh/cot-prompts/{task}.txt", hint)
    exemplars = (
        "Find the domain of the expression $x$.",
        r"If $\det \mathbf{A} = 2$, find it.",
        "Terrell usually lifts two 20-pound weights.",
        "If the system of equations holds, find it.",
    )
    solved = lambda problem, answer: json.dumps(
        {"problem": problem, "level": "1", "type": "A", "solution": rf"It is $\boxed{{{answer}}}$."}
    )
    for number, problem in enumerate(exemplars):
        _text(root / f"math/train/algebra/{number}.json", solved(problem, number))
    _text(root / "math/test/algebra/10.json", solved("Half of one?", r"\frac{1}{2}"))
    _text(root / "math/test/algebra/9.json", solved("A thousand?", "1,000"))
    mbpp = [
        {"task_id": i, "text": f"Give {i}.", "code": f"def f():\n    return {i}"}
        | {"test_list": [f"assert f() == {i}"]}
        for i in (1, 2, 3, 4, 11, 12, 600)
    ]
    _lines(root / "mbpp/mbpp.jsonl", *mbpp)
    _lines(
        root / "humaneval/HumanEval.jsonl",
        {"task_id": "HumanEval/0", "prompt": 'def one(x: int) -> int:\n    """Give\n    x."""\n'}
        | {"entry_point": "one", "canonical_solution": "    return x\n"}
        | {"test": "def check(candidate):\n    assert candidate(3) == 3\n"},
    )
    call = 'Thought: I look.\nAction: search\nAction Input: {"b": 1, "a": "x y"}\nObservation: '
    _lines(
        root / "plugin/exam_plugin_v20231206_react_positive.jsonl",
        {"prompt": "?", "response": call},
    )
    _lines(
        root / "plugin/exam_plugin_v20231206_react_negative.jsonl", {"prompt": "!", "response": ""}
    )
    _interpreter(root / "code_interpreter")
    _agent(root / "hfagent")
    _translations(root / "wmt22/txt", "generaltest2022", 2)
    _translations(root / "wmt21/txt", "newstest2021", 6)
    meeting = {"input": "", "context": "甲：我们开会。", "answers": ["会议讨论了预算3.5亿元。"]}
    _lines(root / "longbench/data/vcsum.jsonl", meeting | {"dataset": "vcsum", "language": "zh"})
    closed = {
        "coursera": ("Which?\nA. a\nB. b", "BD"),
        "gsm100": ("Question: How many?", "1,018"),
        "quality": ("Why?\n (A) So.\n (B) Not.", "(B) Not."),
        "tpo": ("Why?\nA. a\nB. b", "C"),
        "codeU": ("What is f([1, 2])?", "[1, 22.0]"),
        "sci_fi": ("True? Based on the world described in the document.", "True [fact: False]"),
    }
    for name, (asked, answer) in closed.items():
        row = {"input": "Long ago.", "instructions": [asked], "outputs": [answer]}
        _lines(root / f"leval/{name}.jsonl", row)
    return root
