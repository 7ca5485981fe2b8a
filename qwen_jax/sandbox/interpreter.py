"""The original's code interpreter: a model answers in ReAct's form, and Python runs on the way."""

from typing import NamedTuple

from qwen_jax.sandbox.notebook import observe

RUNS = 8  # of code in an answer, where nobody says otherwise
SECONDS = 30  # of all of it
STOP = "Observation:"  # here the model would make up what its code shows
INPUT, OBSERVATION = "\nAction Input:", "\nObservation:"
_ACTION = "\nAction:"
_TOOL = (
    "code_interpreter: Call this tool to interact with the 代码解释器 API. "
    "What is the 代码解释器 API useful for? 代码解释器，可用于执行Python代码。 Parameters: "
    '[{"name": "code", "type": "string", "description": "待执行的代码"}] '
    "Enclose the code within triple backticks (`) at the beginning and end of the code."
)
ASK = f"""Answer the following questions as best you can. You have access to the following tools:

{_TOOL}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [code_interpreter]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: """


class Turn(NamedTuple):
    """An answer so far, and what its last code shows; None where it called nothing more."""

    text: str
    shown: str | None
    runs: int  # of code


def turn(said: str, reply: str, seconds: int, before: str = "") -> Turn:
    """A reply up to its last call, with what that shows.

    said: the text so far, to which the reply belongs. seconds, before: as for `observe`.
    """
    action, given, call = reply.rfind(_ACTION), reply.rfind(INPUT), len(reply.rstrip())
    if (observed := reply.rfind(OBSERVATION)) > given:
        call = observed
    if not 0 <= action < given or not reply[action + len(_ACTION) : given].strip():
        return Turn(said + reply, None, said.count(OBSERVATION))
    earlier = said.split(OBSERVATION)[:-1]
    calls = [part.partition(INPUT)[2] for part in earlier if INPUT in part]
    calls.append(reply[given + len(INPUT) : call])
    shown = observe([called(code_of(one.strip())) for one in calls], seconds, before)
    return Turn(f"{said}{reply[:call]}{OBSERVATION} {shown}\nThought:", shown, len(calls))


def code_of(action_input: str) -> str:
    """The code of a call: in three backticks, in one, in JSON, or all of it."""
    import json5

    _, fence, fenced = action_input.partition("```")
    _, line, fenced = fenced.partition("\n")
    end = fenced.find("```", 1)  # it holds something
    if fence and line and end >= 0:
        return fenced[:end]
    _, *quoted = action_input.split("`", 2)
    if len(quoted) == 2:
        return quoted[0]
    try:
        return str(json5.loads(action_input)["code"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return action_input


def called(code: str) -> str:
    """With `solution()` if it is defined: the models' habit of solving problems in it."""
    return f"{code}\nsolution()\n" if "def solution()" in code else code
