"""Label arrays against brute force: union-find, reshapes, positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_merge.channels.labels import LabelSpace, along, lift, on_axis, regroup, reshape, varying
from onnxslim_merge.views import gather_rows, positions


class Reference:
    """Union-find as a dict of label -> set of members."""

    def __init__(self):
        self.classes = {}
        self.frozen = []

    def fresh(self, count):
        start = len(self.classes)
        for label in range(start, start + count):
            self.classes[label] = {label}

    def unite(self, a, b):
        for left, right in zip(a, b, strict=True):
            merged = self.classes[left] | self.classes[right]
            for label in merged:
                self.classes[label] = merged

    def roots(self):
        return [min(self.classes[label]) for label in range(len(self.classes))]

    def reasons(self):
        found = []
        for label in range(len(self.classes)):
            given = [reason for labels, reason in self.frozen if self.classes[label] & set(labels)]
            found.append(min(given, default=-1))
        return found


@given(st.data())
def test_label_space_equals_a_dict_of_sets(data):
    space, reference = LabelSpace(), Reference()
    for step in range(data.draw(st.integers(1, 8))):
        count = data.draw(st.integers(0, 6))
        made = space.fresh(count)
        assert made.tolist() == list(range(space.size - count, space.size))
        reference.fresh(count)
        if not space.size:
            continue
        labels = st.lists(st.integers(0, space.size - 1), min_size=1, max_size=8)
        a, b = data.draw(labels), data.draw(labels)
        n = min(len(a), len(b))
        space.unite(np.array(a[:n]), np.array(b[:n]))
        reference.unite(a[:n], b[:n])
        if data.draw(st.booleans()):
            space.freeze(np.array(a), step)
            reference.frozen.append((a, step))
    assert space.find(np.arange(space.size)).tolist() == reference.roots()
    assert space.frozen().tolist() == reference.reasons()


def test_unite_broadcasts():
    space = LabelSpace()
    a, b = space.fresh(3), space.fresh(1)
    space.unite(a.reshape(3, 1), b.reshape(1, 1))
    assert space.find(np.arange(4)).tolist() == [0, 0, 0, 0]


def test_long_chains_of_unions_meet_in_the_smallest_label():
    space = LabelSpace()
    labels = space.fresh(5000)
    space.unite(labels[1:], labels[:-1])
    assert not space.find(labels).any()


def test_freezing_keeps_the_first_reason_of_a_class():
    space = LabelSpace()
    a, b = space.fresh(2), space.fresh(2)
    space.freeze(b[:1], 7)
    space.freeze(a, 9)
    space.unite(a[:1], b[:1])
    assert space.frozen().tolist() == [7, 9, 7, -1]


def test_collapse_shortens_axes_along_which_classes_do_not_vary():
    space = LabelSpace()
    array = space.fresh(6).reshape(2, 3)
    assert space.collapse(array).shape == (2, 3)
    space.unite(array[0], array[1])
    assert space.collapse(array).shape == (1, 3)
    space.unite(array[0], array[0, :1])
    assert space.collapse(array).shape == (1, 1)


def test_small_helpers():
    array = np.zeros((1, 4, 1, 2), np.int64)
    assert varying(array) == (1, 3)
    assert on_axis([array], 1) == [array]
    assert on_axis([array], 0) == []
    assert along(np.arange(4), 1, 3).shape == (1, 4, 1)
    assert lift(np.zeros((4, 1)), 4).shape == (1, 1, 4, 1)


@st.composite
def reshapes(draw):
    """Two shapes with the same number of elements: the prime factors of one are grouped anew."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))

    def grouped():
        shape = [1]
        for factor in factors:
            if draw(st.booleans()):
                shape.append(1)
            shape[-1] *= factor
        return tuple(shape[1:] if len(shape) > 1 and shape[0] == 1 and draw(st.booleans()) else shape)

    before = grouped()
    if draw(st.booleans()):
        factors.reverse()
    return before, grouped()


@given(reshapes())
def test_regroup_cuts_into_the_smallest_blocks(shapes):
    before, after = shapes
    blocks = regroup(before, after)
    assert [axis for ins, _ in blocks for axis in ins] == list(range(len(before)))
    assert [axis for _, outs in blocks for axis in outs] == list(range(len(after)))
    for ins, outs in blocks:
        left, right = [before[a] for a in ins], [after[a] for a in outs]
        assert math.prod(left) == math.prod(right)
        inner = set(np.cumprod(left[:-1]).tolist()) & set(np.cumprod(right[:-1]).tolist())
        assert inner <= {1}  # else the block could be cut there


@given(reshapes(), st.randoms(use_true_random=False))
def test_reshape_of_labels_equals_numpy_on_the_full_array(shapes, random):
    before, after = shapes
    short = [n if random.random() < 0.5 else 1 for n in before]
    array = np.arange(math.prod(short)).reshape(short)
    found = reshape(array, before, after)
    assert np.array_equal(np.broadcast_to(found, after), np.broadcast_to(array, before).reshape(after))


def test_reshape_expands_only_what_it_mixes():
    channels = np.arange(3).reshape(1, 3, 1, 1)
    assert reshape(channels, (2, 3, 4, 5), (2, 3, 20)).shape == (1, 3, 1)
    assert reshape(channels, (2, 3, 4, 5), (2, 60)).ravel().tolist() == np.repeat(np.arange(3), 20).tolist()
    assert reshape(channels, (2, 3, 4, 5), (2, 1, 3, 4, 5)).shape == (1, 1, 3, 1, 1)


@given(st.lists(st.integers(0, 5), max_size=12), st.permutations(range(6)), st.integers(1, 6))
def test_positions_equal_a_loop(roots, order, count):
    labels = list(order[:count])
    found = positions(np.array(roots, np.int64), np.array(labels, np.int64))
    for label, row in zip(labels, found.tolist(), strict=True):
        expected = [i for i, root in enumerate(roots) if root == label]
        assert row == expected + [-1] * (len(row) - len(expected))
    assert found.shape[1] == max([1, *(roots.count(label) for label in labels)])


@pytest.mark.parametrize("where", [[[0], [1], [2]], [[2, 0], [1, -1]], [[-1], [-1]]])
def test_gather_rows_puts_zeros_where_there_is_no_position(where):
    matrix = np.arange(1.0, 7.0).reshape(3, 2)
    expected = [[value for i in row for value in (matrix[i] if i >= 0 else [0, 0])] for row in where]
    assert gather_rows(matrix, np.array(where)).tolist() == expected
