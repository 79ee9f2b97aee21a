"""Time and memory of REPrune: synthetic wide layers, and every cell of given models. Each in a process of its own.

python tools/clustering_speed.py [MODEL ...]
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import cyclopts
import numpy as np

from onnxslim_merge.api import analyse
from onnxslim_merge.clustering import ward
from onnxslim_merge.criteria.representatives import representatives
from onnxslim_merge.select import amounts, select
from onnxslim_merge.settings import Criterion, Settings
from onnxslim_merge.views import Views

LAYERS = ((2048, 4608), (8192, 2048))
CRITERIA: tuple[Criterion, ...] = ("reprune", "reprune-kernel")


def layer(rows: int, columns: int) -> None:
    """Filter form on normal noise, half of the rows."""
    weights = np.random.default_rng(0).standard_normal((rows, columns), np.float32).astype(np.float64)
    timed(f"layer {rows} x {columns}, reprune", lambda: representatives(weights, ward(weights).labels(rows // 2)))


def model(path: Path, criterion: Criterion) -> None:
    """All cells of a model at ratio 0.5; analysis stays outside of the time."""
    analysis, settings = analyse(path), Settings(criterion=criterion, ratio=0.5, compensation="none")
    chosen = timed(
        f"{path}, {criterion}", lambda: select(Views(analysis), amounts(analysis, settings), None, settings).notes
    )
    for note in chosen:
        print("   ", note)


def timed(name: str, call: Callable[[], list[str] | np.ndarray]) -> list[str]:
    """Print wall and processor seconds and the most memory that the process had before and after."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{name}: {wall:.1f} s ({cpu:.1f} s of processor), {before / 2**20:.2f} -> {after / 2**20:.2f} GiB", flush=True
    )
    return list(result) if isinstance(result, list) else []


def main(*models: Path) -> None:
    """Measure all."""
    jobs = [(layer, shape) for shape in LAYERS] + [(model, (path, c)) for path in models for c in CRITERIA]
    for function, arguments in jobs:
        process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
        process.start()
        process.join()


if __name__ == "__main__":
    cyclopts.run(main)
