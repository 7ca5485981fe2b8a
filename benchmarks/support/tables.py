"""Results as Markdown tables, one function for each kind of result."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.support.chips import MIB

Result = dict[str, Any]
SERVERS = ("qwen_jax", "llama.cpp")
TRAINERS = ("qwen_jax", "transformers + PEFT")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def training(result: Result) -> str:
    rows = [
        (
            case["case"],
            f"{case['seconds'][TRAINERS[0]]:.3f}",
            f"{'over ' * case['bound']}{case['seconds'][TRAINERS[1]]:.3f}",
            f"{'under ' * case['bound']}{case['time_ratio']['median']:.2f}",
            f"{case['ratio_to_best']:.2f}",
            *(case["peak_megabytes"].get(name, "") for name in TRAINERS),
            f"{case['peak_ratio']:.2f}" if case["peak_ratio"] else "",
        )
        for case in result["cases"]
    ]
    ours = ("case", "s a step", TRAINERS[1], "ratio", "ratio to its best type")
    head = (*ours, "peak, MB", TRAINERS[1], "ratio")
    return table(head, rows)


def serving(result: Result) -> str:
    medians, ratios = result["medians"], result["ratios"]
    columns = ("output_throughput", "mean_ttft_ms", "mean_tpot_ms")
    rows = [[name, *(f"{row[key]:.0f}" for key in columns)] for name, row in medians.items()]
    head = ("server, requests at once", "tokens/s", "ms to the first token", "ms a token after it")
    ratio_rows = [[name, f"{row['median']:.2f}"] for name, row in ratios.items()]
    return table(head, rows) + "\n\n" + table(("ratio", "median"), ratio_rows)


def engine(result: Result) -> str:
    held, short = result["capacity"], result["short_prompts"]
    rows = [
        (
            f"chats at once in the memory of 4 windows of {held['window']} tokens, "
            f"{held['different_alone']} of {held['chats']} other than alone",
            held["at_once"],
        ),
        (
            "time of a token, window of 8192 / of 512",
            f"{result['windows']['8192 / 512']['median']:.2f}",
        ),
        (
            "time until 16 short prompts are ready, one after the other / together",
            f"{short['alone / together']['median']:.2f}",
        ),
        *(
            (
                f"tokens a second of an answer that {kind}, with drafts / without",
                f"{found['with / without']['median']:.2f}",
            )
            for kind, found in result["drafts"].items()
        ),
    ]
    return table(("", ""), rows)


def load_test(result: Result) -> str:
    answers, memory = result["answers"], result["memory"]
    rows = [
        ("mixed streams, 16 at once", answers["finished"]),
        ("of them, different from the same request alone", answers["different_alone"]),
        ("requests after them", memory["requests"]),
        ("growth of memory in their second half, MB", memory["growth_of_second_half_megabytes"]),
        *((name.replace("_", " "), int(count)) for name, count in result["afterwards"].items()),
    ]
    return table(("", "count"), rows)


def clients(result: Result) -> str:
    found: dict[str, list[str]] = {}
    for check, outcome in result["checks"].items():
        found.setdefault(check.partition(".py::")[0], []).append(outcome)
    rows = [(name, len(each), each.count("passed")) for name, each in found.items()]
    return table(("client", "checks", "passed"), rows)


def replicas(result: Result) -> str:
    rows = [
        (name, ", ".join(f"{count} {end}" for end, count in ends.items()))
        for name, ends in result.items()
        if isinstance(ends, dict) and name not in ("versions", "streams")
    ]
    rows.append(("seconds until there are two again", result["seconds until there are two again"]))
    return table(("", "streams"), rows)


def loading(result: Result) -> str:
    rows = [(what, row["median"], row["best"]) for what, row in result["speeds"].items()]
    return table(("GB/s", "median", "best"), rows)


def beyond_reading(result: Result) -> str:
    """Starts beside a plain read of the same files; a start reads them too."""
    medians, (first, *_) = result["medians"], result["starts"]
    rows = [
        (kind, f"{seconds:.1f}", f"{seconds - medians[first]:.1f}" if kind != first else "")
        for kind, seconds in medians.items()
    ]
    return table(("seconds", "median", "beyond reading"), rows)


def recital(result: Result) -> str:
    rows = [
        ("steps", result["steps"]),
        ("seconds", result["seconds"]),
        ("loss at first", result["first_loss"]),
        ("loss at last", result["final_loss"]),
        ("answers word for word before", f"{result['recited_before']:.1%}"),
        ("answers word for word after", f"{result['recited']:.1%}"),
    ]
    curve = "![The loss of every step](images/demo_lora.png)"
    return f"{table(('', 'value'), rows)}\n\n{curve}\n\n    {result['command']}"


def sent(result: Result, unit: float, name: str) -> str:
    """What the devices send each other, by kind."""
    return (
        ", ".join(
            f"{each['count']} {kind} ({each['bytes'] / unit:.1f} {name})"
            for kind, each in result["collectives"].items()
        )
        or "none"
    )


def decoding_plans(result: Result) -> str:
    """A row for every program; of a layer's attention for prompts, alone, the most on a device."""
    rows: list[tuple[Any, ...]] = [
        (
            case["case"],
            f"{case['bytes']['temp'] / MIB:.1f}",
            f"{case['bytes']['peak'] / 1e9:.1f}",
            len(case["copies"]) if "copies" in case else "–",
            case.get("kernels_per_layer", "–"),
            sent(case, MIB, "MiB"),
        )
        for case in result["results"]
        if case["work"] != "attention"
    ]
    alone = [case for case in result["results"] if case["work"] == "attention"]
    for where in dict.fromkeys(case["case"].rpartition(", ")[2] for case in alone):
        sizes = [case["bytes"] for case in alone if case["case"].endswith(where)]
        temp, peak = (max(size[kind] for size in sizes) for kind in ("temp", "peak"))
        name = f"a layer's attention, 2048 tokens of a prompt, {where}"
        rows.append((name, f"{temp / MIB:.1f}", f"{peak / 1e9:.1f}", "–", "–", "–"))
    head = (
        "case",
        "temporaries, MiB",
        "peak, GB",
        "copies",
        "kernels a layer",
        "collectives a step",
    )
    return table(head, rows)


def training_plans(result: Result) -> str:
    rows = [
        (
            case["case"],
            *(f"{case['bytes'][what] / 1e9:.1f}" for what in ("argument", "temp", "peak")),
            len(case["moved"]["copy"]),
            sent(case, 1e9, "GB"),
        )
        for case in result["results"]
    ]
    head = ("case", "weights and state, GB", "temporaries, GB", "peak, GB", "copies")
    return table((*head, "collectives an update"), rows)


def simulation(result: Result) -> str:
    """Rates and waits by machine and slots, what stands behind them, and how many fit at once."""
    pair = lambda found, scale: f"{found['p50'] / scale:.3g} / {found['p99'] / scale:.3g}"
    rows = [
        (
            f"{case['model']}, {case['machine']}, {case['requests_a_second']:.0f} a second",
            case["slots"],
            "yes" if case["prefix_sharing"] else "no",
            case["output_tokens_a_second"],
            pair(case["first_token_ms"], 1000),
            pair(case["next_token_ms"], 1),
            case["answers_in_a_step"],
            case["preemptions"],
        )
        for case in result["cases"]
    ]
    waits = ("first token, s: p50 / p99", "next token, ms: p50 / p99")
    head = ("requests", "slots", "shared", "tokens/s", *waits, "answers in a step", "preempted")
    fitting = [
        (
            f"{case['model']}, {case['cache_gigabytes']} GB",
            case["slots_of_whole_windows"],
            case["answers_in_a_step"],
            case["times_as_many"],
        )
        for case in result["capacity"]
        if case["machine"] == "8 H200"
    ]
    columns = ("cache", "slots of whole windows", "answers at once, in pages", "times")
    return table(head, rows) + "\n\n" + table(columns, fitting)
