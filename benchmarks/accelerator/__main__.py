"""What one GPU or TPU does with the product: python -m benchmarks.accelerator.

In pieces of less than nine minutes, each in a process of its own, which the same command goes on
with wherever it was ended. What does not fit a device is left out, and the result says why.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.accelerator import report
from benchmarks.accelerator.kept import STUCK, UNFINISHED, Kept, run
from benchmarks.accelerator.pieces import pieces
from benchmarks.accelerator.sizes import SIZES
from benchmarks.support import record
from qwen_jax import cli
from qwen_jax.program import progress

PROG = "python -m benchmarks.accelerator"


def main(
    piece: tuple[str, ...] = (),
    size: Literal["full", "tiny"] = "full",
    out: Path = Path("build/accelerator"),
    minutes: float = 8.5,
    again: bool = False,
) -> None:
    """Measure this machine's device, and write benchmarks/results/accelerator_DEVICE.json.

    Args:
        piece: Pieces to measure, one after the other; by default, all that are not finished.
        size: Models of 7B and 14B, or one so small that a CPU shows whether everything runs.
        out: Folder for what pieces have found, and for a checkpoint of 16 GB that is served.
        minutes: Longest that a piece may take before it is ended; it goes on when asked again.
        again: Forget what these pieces have found before.
    """
    if minutes <= 0:
        raise ValueError(f"--minutes is {minutes:g}, wanted more than 0")
    out.mkdir(parents=True, exist_ok=True)
    known = pieces(SIZES[size], out)
    if unknown := [name for name in piece if name not in known]:
        raise ValueError(f"there is no piece {unknown[0]}; there are {', '.join(known)}")
    if again:
        for name in piece or known:
            (out / f"{name}.json").unlink(missing_ok=True)
    ended = 0
    if len(piece) == 1:
        if size == "full" and piece[0] != "server":  # whose process has the device
            _expect_accelerator()
        ended = run(Kept(out, piece[0]), known[piece[0]](), minutes)
    else:
        with progress.working("pieces", len(known), "pieces") as task:
            for name in piece or known:
                options = ["--size", size, "--out", str(out), "--minutes", str(minutes)]
                ended |= _in_a_process([*options, "--piece", name])
                if not (out / f"{name}.json").exists():
                    raise SystemExit(1)  # it has said why
                task.advance()
    result = report.merge(out, known)
    _write(result, out, size)
    if len(piece) != 1:
        print(report.summary(result))
    for fault in report.faults(result, piece or known):
        print(f"error: {fault}", file=sys.stderr)
        ended = ended or 1
    if ended:
        raise SystemExit(ended)


def _expect_accelerator() -> None:
    import jax

    if jax.default_backend() == "cpu":
        raise ValueError(
            "JAX finds no GPU or TPU here: pip install 'qwen_jax[cuda13]' or 'qwen_jax[tpu]', as "
            "docs/install.md says; --size tiny runs on a CPU"
        )


def _in_a_process(options: Sequence[str]) -> int:
    """One piece, to its end; 0 if it got there, whatever it found."""
    command = [sys.executable, "-m", "benchmarks.accelerator", *options]
    while (ended := subprocess.run(command, check=False).returncode) in (UNFINISHED, STUCK):
        pass
    return 0 if ended in (0, 1) else 1  # what failed stands in its result


def _write(result: report.Result, out: Path, size: str) -> None:
    """Where a stranger finds it; of a device that is not known yet, beside the pieces."""
    kind = result["pieces"]["ceilings"].get("device", {}).get("kind", "")
    name = f"accelerator_{'_'.join(kind.lower().split())}" if size == "full" and kind else ""
    folder = record.RESULTS if name else out
    record.write(name or "accelerator", result | {"size": size}, folder=folder)
    try:
        report.draw(result, folder / f"{name or 'accelerator'}.png")
    except ModuleNotFoundError:
        print('no chart: pip install "qwen_jax[train]" brings matplotlib', file=sys.stderr)


def command(arguments: Sequence[str] | None = None, prog: str = PROG) -> None:
    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    listed = ", ".join(pieces(SIZES["full"], Path()))
    reading.read(main, prog, arguments, note=f"Pieces: {listed}.")


if __name__ == "__main__":
    cli.run(command)
