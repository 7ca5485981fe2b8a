"""MMLU, C-Eval and CMMLU: four choices, by likelihood for base models, by reply for chat ones."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from qwen_jax.evaluate.tasks import letters
from qwen_jax.evaluate.tasks.data import Data, NoData, table
from qwen_jax.evaluate.tasks.task import Question, Task
from qwen_jax.text.tokenizer import Tokenizer

_MMLU_COLUMNS = ("question", *letters.LETTERS, "answer")
_MMLU_SOURCE = "https://people.eecs.berkeley.edu/~hendrycks/data.tar, unpacked there"
_CEVAL_SOURCE = (
    "https://huggingface.co/datasets/ceval/ceval-exam/resolve/main/ceval-exam.zip, unpacked there"
)
_CMMLU_SOURCE = (
    "https://huggingface.co/datasets/haonan-li/cmmlu/resolve/main/cmmlu_v1_0_1.zip, unpacked there"
)
Row = dict[str, str]  # question, A, B, C, D, answer
Write = Callable[[Row], str]


def _words(names: str) -> tuple[str, ...]:
    return tuple(names.split())


MMLU_CLASSES = {
    "STEM": _words(
        "abstract_algebra anatomy astronomy college_biology college_chemistry "
        "college_computer_science college_mathematics college_physics computer_security "
        "conceptual_physics electrical_engineering elementary_mathematics high_school_biology "
        "high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning"
    ),
    "Humanities": _words(
        "formal_logic high_school_european_history high_school_us_history "
        "high_school_world_history international_law jurisprudence logical_fallacies "
        "moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"
    ),
    "Social sciences": _words(
        "econometrics high_school_geography high_school_government_and_politics "
        "high_school_macroeconomics high_school_microeconomics high_school_psychology "
        "human_sexuality professional_psychology public_relations security_studies sociology "
        "us_foreign_policy"
    ),
    "Other": _words(
        "business_ethics college_medicine human_aging management marketing medical_genetics "
        "miscellaneous nutrition professional_accounting professional_medicine virology "
        "global_facts clinical_knowledge"
    ),
}
CEVAL_CLASSES = {
    "STEM": _words(
        "computer_network operating_system computer_architecture college_programming "
        "college_physics college_chemistry advanced_mathematics probability_and_statistics "
        "discrete_mathematics electrical_engineer metrology_engineer high_school_mathematics "
        "high_school_physics high_school_chemistry high_school_biology "
        "middle_school_mathematics middle_school_biology middle_school_physics "
        "middle_school_chemistry veterinary_medicine"
    ),
    "Social sciences": _words(
        "college_economics business_administration marxism mao_zedong_thought "
        "education_science teacher_qualification high_school_politics high_school_geography "
        "middle_school_politics middle_school_geography"
    ),
    "Humanities": _words(
        "modern_chinese_history ideological_and_moral_cultivation logic law "
        "chinese_language_and_literature art_studies professional_tour_guide "
        "legal_professional high_school_chinese high_school_history middle_school_history"
    ),
    "Other": _words(
        "civil_servant sports_science plant_protection basic_medicine clinical_medicine "
        "urban_and_rural_planner accountant fire_engineer "
        "environmental_impact_assessment_engineer tax_accountant physician"
    ),
    "Hard": _words(
        "advanced_mathematics discrete_mathematics probability_and_statistics college_physics "
        "college_chemistry high_school_mathematics high_school_physics high_school_chemistry"
    ),
}


# --- the data, as rows of question, A, B, C, D, answer ------------------------------------------
def _mmlu(data: Data, split: str) -> Iterator[tuple[str, list[Row]]]:
    folder = data.find("mmlu", split, f"data/{split}", source=_MMLU_SOURCE)
    for file, subject in _files(folder, f"_{split}"):
        yield subject, table(file, _MMLU_COLUMNS)


def _ceval(data: Data, split: str) -> Iterator[tuple[str, list[Row]]]:
    folder = data.find("ceval", split, f"ceval-exam/{split}", source=_CEVAL_SOURCE)
    for file, subject in _files(folder, f"_{split}"):
        yield subject, _named(file, table(file))


def _cmmlu(data: Data, split: str) -> Iterator[tuple[str, list[Row]]]:
    for file, subject in _files(data.find("cmmlu", split, source=_CMMLU_SOURCE), ""):
        yield subject, _named(file, table(file))


def _files(folder: Path, ending: str) -> Iterator[tuple[Path, str]]:
    files = sorted(folder.glob(f"*{ending}.csv"))
    if not files:
        raise NoData(f"there is no *{ending}.csv in {folder}")
    yield from ((file, file.stem.removesuffix(ending)) for file in files)


def _named(file: Path, rows: list[Row]) -> list[Row]:
    """Columns under the names used here; C-Eval and CMMLU differ in capitals."""
    names = {name: name.lower() if len(name) > 1 else name for row in rows for name in row}
    rows = [{names[name]: value for name, value in row.items()} for row in rows]
    if rows and (missing := {"question", *letters.LETTERS, "answer"} - rows[0].keys()):
        raise ValueError(f"{file} has no column {', '.join(sorted(missing))}")
    return rows


# --- base models --------------------------------------------------------------------------------
def _lettered(row: Row) -> str:
    return "".join(f"\n{letter}. {row[letter]}" for letter in letters.LETTERS)


def _english_item(row: Row) -> str:
    return f"Question: {row['question']}{_lettered(row)}\nAnswer:"


def _chinese_item(row: Row) -> str:
    return f"问题：{row['question']}{_lettered(row)}\n答案："


def _english_header(subject: str) -> str:
    name = subject.replace("_", " ").strip()
    return f"The following are multiple choice questions (with answers) about {name}.\n\n"


def _few_shot(
    read: Callable[[Data, str], Iterator[tuple[str, list[Row]]]],
    split: str,
    header: Callable[[str], str],
    item: Write,
    space: str,
    data: Data,
) -> Iterator[Question]:
    """Every exemplar of the dev split, then the question; its letter comes after `space`."""
    exemplars = dict(read(data, "dev"))
    for subject, rows in read(data, split):
        if subject not in exemplars:
            raise NoData(f"there are no exemplars of {subject} in the dev split")
        shared = header(subject) + "".join(
            f"{item(row)}{space}{row['answer']}\n\n" for row in exemplars[subject]
        )
        for number, row in enumerate(rows):
            yield Question(
                f"{subject}/{number}", shared + item(row), row["answer"], subject, shared
            )


# --- chat models --------------------------------------------------------------------------------
def _asked(opening: str, gap: str, row: Row) -> str:
    choices = "".join(f"{letter}. {row[letter]}\n" for letter in letters.LETTERS)
    return f"{opening}{row['question']}{gap}{choices}"


def _zero_shot(
    read: Callable[[Data, str], Iterator[tuple[str, list[Row]]]],
    split: str,
    opening: str,
    gap: str,
    data: Data,
) -> Iterator[Question]:
    for subject, rows in read(data, split):
        for number, row in enumerate(rows):
            prompt = _asked(opening, gap, row)
            yield Question(f"{subject}/{number}", prompt, row["answer"], subject, facts=row)


def _choices(question: Question) -> dict[str, str]:
    return {letter: question.facts[letter] for letter in letters.LETTERS}


def _judge_english(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    return float(letters.english(reply, _choices(question)) == question.answer)


def _judge_chinese(question: Question, reply: str, tokenizer: Tokenizer) -> float:
    found = letters.chinese(reply, question.facts["question"], _choices(question))
    return float(found == question.answer)


_OPENING = (
    "The following is a multiple-choice question. Please choose the most suitable one among "
    "A, B, C and D as the answer to this question.\n\n"
)
_SPACED = tuple(f" {letter}" for letter in letters.LETTERS)
_NO_HEADER: Callable[[str], str] = lambda subject: ""
TASKS = [
    Task(
        "mmlu",
        "MMLU",
        "choice",
        partial(_few_shot, _mmlu, "test", _english_header, _english_item, " "),
        shots=5,
        labels=_SPACED,
        most_prompt_tokens=2047,
        classes=MMLU_CLASSES,
    ),
    Task(
        "ceval",
        "C-Eval (validation)",
        "choice",
        partial(_few_shot, _ceval, "val", _NO_HEADER, _chinese_item, ""),
        shots=5,
        labels=tuple(letters.LETTERS),
        average="macro",
        classes=CEVAL_CLASSES,
    ),
    Task(
        "cmmlu",
        "CMMLU",
        "choice",
        partial(_few_shot, _cmmlu, "test", _NO_HEADER, _chinese_item, ""),
        shots=5,
        labels=tuple(letters.LETTERS),
        average="macro",
    ),
    Task(
        "mmlu_chat",
        "MMLU, chat",
        "chat",
        partial(_zero_shot, _mmlu, "test", _OPENING, "\n"),
        _judge_english,
        classes=MMLU_CLASSES,
    ),
    Task(
        "ceval_chat",
        "C-Eval (validation), chat",
        "chat",
        partial(_zero_shot, _ceval, "val", "", "\n\n"),
        _judge_chinese,
        average="macro",
        classes=CEVAL_CLASSES,
    ),
]
