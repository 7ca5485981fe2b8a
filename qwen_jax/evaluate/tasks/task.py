"""What a task is: where its questions come from, how they are put, what counts as right."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen_jax.evaluate.tasks.data import Data
from qwen_jax.text.tokenizer import Tokenizer

Judge = Callable[["Question", str, Tokenizer], float]
Corpus = Callable[[Sequence[str], Sequence[str]], tuple[float, float]]
Turn = Callable[["Question", str, str], tuple[str, bool]]


@dataclass(frozen=True)
class Question:
    """One line of a task's data, put into words.

    shared: the part of the prompt, from its start on, that the group's other prompts have too.
    facts: what judging needs beside the answer.
    document: the part of the prompt that is cut where the model's window is too small for all.
    """

    id: str
    prompt: str
    answer: str
    group: str = ""
    shared: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    document: str = ""


@dataclass(frozen=True)
class Task:
    """A row of the published tables.

    kind: "choice" takes the likeliest of `labels` after the prompt; "text" continues the prompt;
        "chatml" too, as the turn of a model that answers; "chat" answers it as a user's message.
    judge: a question, the completion and the tokenizer -> 1 for right, 0 for wrong, or a share;
        None for choices.
    turn: of a model that is asked more than once: a question, what stands behind its prompt by now
        and the new reply -> what stands there from then on, and whether the model goes on.
    corpus: all completions and answers -> (score, its error), where that is no mean of questions'.
    penalty: the checkpoint's repetition penalty holds, which the others turn off.
    average: "micro" over questions, "macro" over groups.
    exact: the prompts and the judging are those behind the published number; else comparable.
    classes: name of a wider class -> groups, for a table of its own.
    """

    name: str
    title: str
    kind: Literal["choice", "text", "chatml", "chat"]
    read: Callable[[Data], Iterable[Question]]
    judge: Judge | None = None
    turn: Turn | None = None
    corpus: Corpus | None = None
    metric: str = "accuracy"
    shots: int = 0
    labels: tuple[str, ...] = ()
    most_prompt_tokens: int | None = None  # the last that many are kept
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None  # default: the checkpoint's
    average: Literal["micro", "macro"] = "micro"
    exact: bool = True
    penalty: bool = False
    keep: Literal["start", "end", "ends"] = "start"  # of a document that is too long
    runs_code: bool = False
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def likeliest(self, scores: Sequence[float]) -> str:
        """Of a choice: the letter whose label scores most, of equal ones the first."""
        return self.labels[max(range(len(scores)), key=scores.__getitem__)].strip()
