"""Latency of the original against the slimmed model, measured side by side on the providers that really run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from onnxslim_merge.runtime import CPU, Runner, with_cpu

WARM_UP_RUNS = 3
MAX_PAIRS = 1000
FEW_PAIRS, PATIENCE = 5, 10.0  # of a model so slow that the least of pairs takes longer than these seconds
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Speed:
    """Median latency of one run, in milliseconds, copies between host and device included.

    provider: where the nodes really ran: the requested one if it ran any node of both models, see `ran_on`.
    speedup = before_ms / after_ms; low and high bound its 95% confidence interval over `pairs` pairs of runs.
    nodes_before, nodes_after: kernels on each provider, from the session's profile.
    """

    provider: str
    before_ms: float
    after_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    pairs: int
    requested: str
    nodes_before: Mapping[str, int]
    nodes_after: Mapping[str, int]


def measure(
    before: onnx.ModelProto | Path,
    after: onnx.ModelProto | Path,
    feeds: Mapping[str, np.ndarray],
    providers: Sequence[str],
    *,
    custom_ops: Iterable[Path] = (),
    min_pairs: int = 15,
    budget_s: float = 2.0,
    seed: int = 0,
    lean: bool = False,
) -> list[Speed]:
    """Time both models on one feed, for each provider: single runs in pairs, in random order within each pair.

    Interleaving makes both models see the same clock, cache and noise. Pairs are taken for `budget_s` seconds for each
    provider, but at least `min_pairs` (a slow model takes longer; 5 after ten seconds) and at most 1000. A
    provider that ran no node of a model is left out if another row already has what ran instead. Raises VerifyError if
    a model does not load or run.
    """
    libraries = tuple(custom_ops)
    speeds: dict[str, Speed] = {}
    for provider in dict.fromkeys(providers):
        runners = [
            Runner(
                model,
                providers=with_cpu((provider,)),
                custom_ops=libraries,
                lean=lean,
                label=label,
                tf32=True,  # what users get by default
                profile=True,
            )
            for model, label in ((before, "the original"), (after, "the slimmed model"))
        ]
        speed = _measured(runners, feeds, provider, min_pairs=min_pairs, budget_s=budget_s, seed=seed)
        if speed.provider == provider or speed.provider not in speeds:
            speeds[speed.provider] = speed
    return list(speeds.values())


def _measured(
    runners: Sequence[Runner],
    feeds: Mapping[str, np.ndarray],
    provider: str,
    *,
    min_pairs: int,
    budget_s: float,
    seed: int,
) -> Speed:
    """Warm up the two runners, ask which providers ran, and time them against each other."""
    for runner in runners:
        runner.run(feeds)
    before, after = (runner.nodes_per_provider() for runner in runners)  # ends profiling, which would cost time
    for _ in range(WARM_UP_RUNS - 1):
        for runner in runners:
            runner.run(feeds)
    tasks = [partial(runner.run, feeds) for runner in runners]
    seconds = interleaved(tasks, min_pairs=min_pairs, budget_s=budget_s, seed=seed)
    before_ms, after_ms = (float(value) for value in np.median(seconds, axis=0) * 1e3)
    low, high = ratio_interval(seconds, seed=seed)
    return Speed(
        provider=ran_on(provider, before, after),
        before_ms=before_ms,
        after_ms=after_ms,
        speedup=before_ms / after_ms,
        speedup_low=low,
        speedup_high=high,
        pairs=len(seconds),
        requested=provider,
        nodes_before=before,
        nodes_after=after,
    )


def ran_on(requested: str, before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """`requested` if it ran a node of both models, else the one that ran most nodes of both (no nodes at all: CPU)."""
    both = {provider: min(before[provider], after[provider]) for provider in before.keys() & after.keys()}
    if requested in both:
        return requested
    return max(sorted(both), key=both.__getitem__, default=CPU)


def interleaved(tasks: Sequence[Callable[[], object]], *, min_pairs: int, budget_s: float, seed: int) -> np.ndarray:
    """(rounds, tasks) seconds: every round runs each task once, in random order, until the budget and least are met.

    After ten seconds 5 rounds are enough.
    """
    rng = np.random.default_rng(seed)
    rounds: list[np.ndarray] = []
    began = time.perf_counter()
    while True:
        spent = time.perf_counter() - began
        least = min_pairs if spent < max(PATIENCE, budget_s) else min(min_pairs, FEW_PAIRS)
        if len(rounds) >= least and (spent >= budget_s or len(rounds) >= MAX_PAIRS):
            return np.array(rounds)
        seconds = np.empty(len(tasks))
        for task in rng.permutation(len(tasks)):
            start = time.perf_counter()
            tasks[task]()
            seconds[task] = time.perf_counter() - start
        rounds.append(seconds)


def ratio_interval(seconds: np.ndarray, *, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap over the rows (pairs) of `seconds` (pairs, 2): bounds of median before / median after."""
    rng = np.random.default_rng(seed)
    drawn = seconds[rng.integers(0, len(seconds), size=(RESAMPLES, len(seconds)))]  # (resamples, pairs, 2)
    medians = np.median(drawn, axis=1)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
