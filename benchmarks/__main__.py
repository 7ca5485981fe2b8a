"""Every number that a CPU gives, one after the other: python -m benchmarks [--tiny].

Each runs in a process of its own; those of GPUs and TPUs are `python -m benchmarks.aot`. With
--tiny nothing is written: does everything still run?
"""

import subprocess
import sys

PARTS = ("load", "startup", "speed", "finetune", "perplexity", "serving", "serve_load")
TINY = {
    "startup": ("--tiny", "--repeats", "1"),
    "speed": ("--tiny", "--rounds", "2"),
    "finetune": ("--tiny", "--rounds", "2"),
    "serving": ("--tiny", "--rounds", "1"),
    "serve_load": ("--requests", "40", "--mixed", "20"),
}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--tiny"]):
        print("usage: python -m benchmarks [--tiny]", file=sys.stderr)
        return 2
    codes = []
    for part in TINY if arguments else PARTS:
        print(f"--- {part}", flush=True)
        options = TINY[part] if arguments else ()
        command = [sys.executable, "-m", f"benchmarks.{part}", *options]
        codes.append(subprocess.run(command, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
