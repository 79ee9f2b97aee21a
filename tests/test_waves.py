"""Which consumers are looked at together: all of them, each once, as far as the memory goes."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_least_squares import FIT, calibration
from textmodels import feeds, parse, run

import onnxslim_merge
from onnxslim_merge.compensation.onesided import one_sided
from onnxslim_merge.compensation.reasons import memory_for_rows
from onnxslim_merge.compensation.refits import refit
from onnxslim_merge.compensation.stepwise import Stepwise
from onnxslim_merge.compensation.waves import affordable
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.statistics.readings import SAMPLED, Reading, Sample
from onnxslim_merge.verify import speed


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sets(st.sampled_from("abcd"), max_size=2)), max_size=9), st.integers(0, 30)
)
def test_parts_cost_what_they_may_and_ties_hold_where_they_can(items, budget):
    events = range(len(items))
    costs, ties = ({i: item[k] for i, item in enumerate(items)} for k in (0, 1))
    parts = [*affordable(events, ties, costs, budget)]
    assert sorted(event for part in parts for event in part) == [*events]
    assert all(len(part) == 1 or sum(costs[event] for event in part) <= budget for part in parts)
    place = {event: number for number, part in enumerate(parts) for event in part}
    for one, other in ((i, j) for i in events for j in events if ties[i] & ties[j]):
        group = {one}
        while grown := {j for j in events if any(ties[i] & ties[j] for i in group)} - group:
            group |= grown
        assert place[one] == place[other] or sum(costs[event] for event in group) > budget


BRANCHES = """g (float[N, 8] x) => (float[N, 3] y)
<float[8,20] w, float[20] b, float[20,12] p, float[12] pb, float[20,12] q, float[12] qb, float[12,3] u, float[12,3] v>
{ h = MatMul (x, w) a = Add (h, b) r = Relu (a) m = MatMul (r, p) mb = Add (m, pb) c = Relu (mb) n = MatMul (r, q)
  nb = Add (n, qb) d = Relu (nb) s = MatMul (c, u) t = MatMul (d, v) y = Add (s, t) }"""


@pytest.mark.parametrize(("memory", "most"), [(1 << 30, 2), (1 << 12, 1)])
def test_what_does_not_fit_is_looked_at_in_turn(memory, most, tmp_path, monkeypatch):
    """Two consumers of one cell, then two of others that do not depend on each other: one at a time, if need be."""
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.parse_size", lambda size: memory)
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.hindrance", lambda *args: None)
    together, gathered = [], Stepwise._gathered
    monkeypatch.setattr(
        Stepwise, "_gathered", lambda self, i, ahead: (together.append(len(i)), gathered(self, i, ahead=ahead))[1]
    )
    model = parse(BRANCHES)
    data, _ = calibration(tmp_path, model, 512)
    new = feeds(model, {"N": 64}, 99)
    (y,) = run(model, new)

    def error(**options):
        result = onnxslim_merge.slim(model, ratio=0.4, calibration_data=data, **options)
        return float(np.square(y - run(result.model, new)[0]).mean())

    assert error(**FIT) < error(compensation="mean+merge")
    assert max(together) == most


STREAM = """g (float[N, 8] x) => (float[N, 3] y)
<float[8,20] w, float[20] b, float[20,12] p, float[12] pb, float[12,20] q, float[20] qb, float[20,3] v>
{ h = MatMul (x, w) a = Add (h, b) m = MatMul (a, p) mb = Add (m, pb) c = Relu (mb) n = MatMul (c, q) nb = Add (n, qb)
  s = Add (nb, a) y = MatMul (s, v) }"""


@pytest.mark.parametrize(("memory", "said"), [(1 << 30, False), (1 << 12, True)])
def test_who_has_no_say_for_lack_of_memory_is_named(memory, said, tmp_path, monkeypatch):
    """The last layer reads the stream that the first one reads, and would be looked at ahead."""
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.parse_size", lambda size: memory)
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.hindrance", lambda *args: None)
    model = parse(STREAM)
    data, _ = calibration(tmp_path, model, 256)

    def notes():
        found = onnxslim_merge.slim(model, ratio=0.4, calibration_data=data, **FIT).report.notes
        return [note for note in found if "has no say in who stays" in note]

    assert any(notes()) == said
    for note in notes():
        (needed,) = re.findall(r"take --memory-limit (\d+)MiB or more", note)
        monkeypatch.setattr("onnxslim_merge.compensation.stepwise.parse_size", lambda size, n=needed: int(n) << 20)
        assert not any(notes())


CUT_OFF = """g (float[N, 16] x) => (float[N, 8] y)
<float[16,24] w, float[24] b, float[24,32] v, float[32] c, float[32,8] u>
{ a = MatMul (x, w) p = Add (a, b) r = Relu (p) m = MatMul (r, v) h = Add (m, c) z = Relu (h) y = MatMul (z, u) }"""


def reading(kept, read, room):
    """Of 4 features and 2 outputs; kept, read: rows of three fitted batches."""
    sample = Sample(*(np.zeros((kept // 3, n), np.float32) for n in (4, 2, 2)), held=False)
    found = Reading(0, None, [np.arange(4)], 1, samples=[sample] * 3, room=room)
    found.train = [Gram.zeros(4, 2)]
    found.train[0].count = read
    return found


@pytest.mark.parametrize(
    ("kept", "read", "room", "batches", "expected"),
    [
        (129, 9999, 500, 4, None),  # there are rows enough
        (30, 30, 500, 4, None),  # all that were read
        (30, 9999, SAMPLED, 4, None),  # it is not memory that lacks
        (30, 9999, 500, 10**6, None),  # more are never kept
        (30, 9999, 100, 4, 6880),  # 43 rows of 4 batches, 8 numbers each, where 500 bytes give 100 numbers
    ],
)
def test_the_memory_that_rows_take(kept, read, room, batches, expected):
    """One of four batches is held out; 32 rows for each of 4 features are enough."""
    assert memory_for_rows(reading(kept, read, room), np.ones(4, bool), batches, 500) == expected


def as_anchored(*args):
    """A refit of which the anchor is held out to be best."""
    found = refit(*args)
    return replace(found, fits=[replace(fit, strength=None) for fit in found.fits])


def test_a_cut_off_that_is_not_heeded_for_lack_of_memory_is_said(tmp_path, monkeypatch):
    """The least limit with which it is heeded is named, to a MiB."""
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    model = parse(CUT_OFF)
    data, _ = calibration(tmp_path, model, 2048)

    def run_with(memory):
        """How often the rows sufficed, and what is said."""
        heeded = []

        def spied(found, *args):
            heeded.append((better := one_sided(found, *args)) is not None)
            return better

        monkeypatch.setattr("onnxslim_merge.compensation.stepwise.parse_size", lambda size: memory)
        monkeypatch.setattr("onnxslim_merge.compensation.refits.one_sided", spied)
        notes = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, exclude=["m$"], **FIT).report.notes
        return any(heeded), [note for note in notes if "without regard to the Relu" in note]

    heeded, (note,) = run_with(1 << 20)
    (needed,) = re.findall(r"m is refitted .*that takes --memory-limit (\d+)MiB", note)
    assert not heeded
    assert run_with(int(needed) << 20) == (True, [])
    monkeypatch.setattr("onnxslim_merge.compensation.stepwise.refit", as_anchored)
    assert run_with(1 << 20) == (False, [])  # more rows would not help
    monkeypatch.undo()
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    assert not run_with((int(needed) - 1) << 20)[0]
