"""Values of options that are words with numbers in them: sizes of memory, ranges, shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from onnxslim_merge.errors import UsageError

SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmg]?i?b|)", re.IGNORECASE)
UNITS = {"": 1, "b": 1} | {f"{p}{i}b": (1024 if i else 1000) ** n for n, p in enumerate("kmg", 1) for i in ("", "i")}
LEAST_MEMORY = 1 << 26


def parse_size(size: int | str) -> int:
    """Bytes from a number or from `500MB`, `1.5 GiB`, `4096`. Raises UsageError."""
    found = SIZE.fullmatch(str(size).strip())
    bytes_ = float(found[1]) * UNITS[found[2].lower()] if found else 0.0
    if not LEAST_MEMORY <= bytes_ < float("inf"):
        raise UsageError(f"--memory-limit {size!r}: expected a size of at least 64MiB, as in 500MB or 2GiB")
    return int(bytes_)


def size_text(bytes_: int) -> str:
    """The least size of a form that `parse_size` reads which holds so many bytes: `64MiB`, `1.5GiB`."""
    mib = -(-bytes_ // 2**20)
    return f"{mib}MiB" if mib < 2**10 else f"{-(-10 * bytes_ // 2**30) / 10:.1f}GiB"


def parse_range(pixels: str) -> tuple[float, float]:
    """Low and high from `0:255`. Raises UsageError."""
    low, _, high = pixels.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = (0.0, 0.0)
    if not -math.inf < found[0] < found[1] < math.inf:
        raise UsageError(f"--pixels {pixels!r}: expected auto, normal or LOW:HIGH, as in 0:255 or -1:1")
    return found


def parse_input_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from texts `NAME:1,3,224,224`, split at the last colon. Raises UsageError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not name or not shape:
            raise UsageError(f"--input-shapes {text!r}: expected NAME:1,3,224,224")
        if name in shapes:
            raise UsageError(f"--input-shapes {name}: given twice")
        shapes[name] = shape
    return shapes
