"""Accelerators as their makers publish them, and slices of them: "h200:8", "v5e:4x8"."""

import math
import re
from dataclasses import dataclass
from typing import Literal

Remat = Literal["none", "dots", "full"]  # what a training keeps for its backward pass
Work = Literal["generate", "lora", "full"]


@dataclass(frozen=True)
class Chip:
    """Published peaks of one device."""

    memory: float  # bytes that a program can have
    bandwidth: float  # bytes a second of its memory
    flops: float  # bfloat16 operations a second
    tpu: bool


CHIPS = {
    "a100": Chip(80e9, 2.039e12, 312e12, False),
    "h100": Chip(80e9, 3.35e12, 989e12, False),
    "h200": Chip(140e9, 4.8e12, 989e12, False),
    "v4": Chip(32e9, 1.228e12, 275e12, True),
    "v5e": Chip(16e9, 0.819e12, 197e12, True),
    "v5p": Chip(95e9, 2.765e12, 459e12, True),
    "v6e": Chip(32e9, 1.64e12, 918e12, True),
}
# slices that can be rented, from small to large
SLICES = {
    "a100": ("1", "2", "4", "8"),
    "h100": ("1", "2", "4", "8"),
    "h200": ("1", "2", "4", "8"),
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


# TPUs in three dimensions also come in cubes of 4x4x4, up to this, shortest side first
CUBES = {"v4": (12, 16, 16), "v5p": (16, 16, 24)}


def _exists(chip: str, sides: list[int]) -> bool:
    """Whether there is such a slice; GPUs are joined in any number."""
    if not CHIPS[chip].tpu or "x".join(map(str, sides)) in SLICES[chip]:
        return True
    largest = CUBES.get(chip, ())
    return (
        len(sides) == len(largest)
        and sides == sorted(sides)
        and all(side and side % 4 == 0 for side in sides)
        and all(side <= most for side, most in zip(sides, largest, strict=True))
    )


def parse(mesh: str) -> tuple[str, int]:
    """("v5e", 32) of "v5e:4x8"; one device where no number stands."""
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d{1,4}(?:x\d{1,4}){0,2}))?", mesh.lower())
    if match is None or match[1] not in CHIPS:
        known = ", ".join(CHIPS)
        raise ValueError(f"got the mesh {mesh!r}, wanted CHIP or CHIP:4x8, of the chips {known}")
    chip, sides = match[1], [int(side) for side in (match[2] or "1").split("x")]
    count = math.prod(sides)
    if not 1 <= count <= 65536:
        raise ValueError(f"got the mesh {mesh!r} of {count} devices, wanted 1 to 65536")
    if match[2] and not _exists(chip, sides):
        cubes = ", and any 4Ax4Bx4C, A <= B <= C, up to {}x{}x{}"
        more = cubes.format(*CUBES[chip]) if chip in CUBES else ""
        raise ValueError(
            f"got the mesh {mesh!r}; slices of {chip}: {', '.join(SLICES[chip])}{more}"
        )
    return chip, count


def split(mesh: str, data: int, fsdp: int, tensor: int | None) -> tuple[int, int, int]:
    """Sizes of the axes on a slice; tensor takes what the others leave."""
    _, count = parse(mesh)
    tensor = max(1, count // (data * fsdp)) if tensor is None else tensor
    if min(data, fsdp, tensor) < 1 or data * fsdp * tensor != count:
        raise ValueError(
            f"data {data} x fsdp {fsdp} x tensor {tensor} makes {data * fsdp * tensor} devices, "
            f"{mesh} has {count}; choose sizes whose product is {count}"
        )
    return data, fsdp, tensor
