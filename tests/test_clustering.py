"""Ward's clustering against scikit-learn and scipy, on rows and single numbers; the greedy cover by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering

from onnxslim_merge import clustering
from onnxslim_merge.clustering import (
    cut_numbers,
    cut_numbers_at,
    distance_sums,
    distances,
    in_order,
    ward,
    ward_of_numbers,
)
from onnxslim_merge.criteria.coverage import cover
from onnxslim_merge.criteria.representatives import in_geometry, representatives
from onnxslim_merge.numerics import CPU

SEEDS = st.integers(0, 10**6)


def sklearn_labels(rows: np.ndarray, clusters: int) -> np.ndarray:
    if len(rows) == 1:
        return np.zeros(1, np.int64)
    return in_order(AgglomerativeClustering(clusters).fit_predict(rows))


@given(SEEDS, st.integers(1, 30), st.integers(1, 8), st.data())
def test_labels_are_those_of_scikit_learn(seed, n, d, data):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    clusters = data.draw(st.integers(1, n))
    labels = ward(rows).labels(clusters)
    assert labels.tolist() == sklearn_labels(rows, clusters).tolist()
    assert labels.max() + 1 == clusters


@given(SEEDS, st.integers(2, 30), st.integers(1, 5), st.data())
def test_numbers_are_clustered_as_rows_of_length_one(seed, n, c, data):
    columns = np.random.default_rng(seed).normal(size=(c, n))
    clusters = data.draw(st.integers(1, n))
    order, heights = ward_of_numbers(columns)
    for row, labels, found in zip(columns, cut_numbers(order, heights, clusters), heights, strict=True):
        assert in_order(labels).tolist() == sklearn_labels(row[:, None], clusters).tolist()
        assert np.allclose(np.sort(found), linkage(row[:, None], "ward")[:, 2], atol=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=25), st.data())
def test_equal_numbers_and_ties_still_give_exactly_as_many_clusters(values, data):
    clusters = data.draw(st.integers(1, len(values)))
    order, heights = ward_of_numbers(np.array([values], float))
    (labels,) = cut_numbers(order, heights, clusters)
    assert len(set(labels.tolist())) == clusters
    if clusters <= len(set(values)):  # equal numbers join first
        assert all(len(set(labels[np.array(values) == v])) == 1 for v in values)


@given(SEEDS, st.integers(2, 30), st.floats(0.0, 4.0))
def test_cutting_at_a_height_is_scipys(seed, n, height):
    columns = np.random.default_rng(seed).normal(size=(1, n))
    tree, joined = ward(columns.T), linkage(columns.T, "ward")
    expected = n - int((joined[:, 2] <= height).sum())
    assert tree.labels_at(height).max() + 1 == expected
    assert cut_numbers_at(*ward_of_numbers(columns), height).max() + 1 == expected
    assert tree.height_of(expected) <= height
    assert tree.height_of(n) == 0.0


@pytest.mark.parametrize("clusters", range(1, 7))
def test_tied_heights_give_as_many_clusters_as_asked_for(clusters):
    assert ward(np.eye(6)).labels(clusters).max() + 1 == clusters  # scipy's maxclust gives one here


@pytest.mark.parametrize("shape", [(2, 3), (7, 1), (40, 12), (300, 5)])
def test_distances_in_blocks(monkeypatch, shape):
    monkeypatch.setattr(clustering, "BLOCK", 1000)
    rows = np.random.default_rng(0).normal(size=shape) + 100  # far from the origin
    assert np.allclose(distances(rows), pdist(rows), atol=1e-7)
    assert np.allclose(distance_sums(rows), squareform(pdist(rows)).sum(1), atol=1e-6)


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 5), st.integers(1, 6))
def test_planted_clusters_are_recovered(seed, groups, members):
    rng = np.random.default_rng(seed)
    centres = 10 * np.eye(groups, 8)
    source = rng.permutation(np.repeat(np.arange(groups), members))
    rows = centres[source] + 0.1 * rng.normal(size=(groups * members, 8))
    labels = ward(rows).labels(groups)
    assert (labels == in_order(source)).all()
    kept = representatives(rows, labels)
    assert sorted(source[kept]) == list(range(groups))


def test_too_many_rows_are_split_and_planted_clusters_still_found(monkeypatch):
    monkeypatch.setattr(clustering, "EXACT_ROWS", 20)
    rng = np.random.default_rng(0)
    source = rng.permutation(np.repeat(np.arange(10), 7))
    rows = 10 * np.eye(10)[source] + 0.1 * rng.normal(size=(70, 10))
    tree = ward(rows, CPU, 10)
    assert (tree.labels(10) == in_order(source)).all()
    assert len(tree.heights) < 69  # parts never join: it was split
    assert tree.labels(25).max() + 1 == 25
    assert ward(rows, CPU, 1).labels(1).max() == 0  # fewer clusters than parts: not split


@given(SEEDS, st.integers(2, 20), st.data())
def test_permuted_rows_give_the_permuted_choice(seed, n, data):
    rng = np.random.default_rng(seed)
    rows, permutation = rng.normal(size=(n, 5)), rng.permutation(n)
    clusters = data.draw(st.integers(1, n))
    for geometry in ("euclidean", "cosine"):
        placed = in_geometry(rows, geometry)
        kept = representatives(placed, ward(placed).labels(clusters))
        moved = placed[permutation]
        assert sorted(permutation[representatives(moved, ward(moved).labels(clusters))]) == kept.tolist()


@given(SEEDS, st.integers(2, 20), st.floats(0.01, 100), st.data())
def test_cosine_is_blind_to_a_positive_scale(seed, n, factor, data):
    rows = np.random.default_rng(seed).normal(size=(n, 5))
    clusters, row = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    scaled = rows.copy()
    scaled[row] *= factor
    one, other = (in_geometry(r, "cosine") for r in (rows, scaled))
    kept = [representatives(r, ward(r).labels(clusters)).tolist() for r in (one, other)]
    assert kept[0] == kept[1]


def test_the_representative_is_the_member_nearest_to_the_centre():
    rows = np.array([[0.0], [1.0], [2.5], [10.0], [12.0]])
    assert representatives(rows, np.array([0, 0, 0, 1, 1])).tolist() == [1, 4]  # of two: the larger
    assert representatives(np.ones((3, 2)), np.zeros(3, np.int64)).tolist() == [0]


# -- the greedy cover -------------------------------------------------------------------------------------------------


def covered(labels: np.ndarray, chosen) -> int:
    return sum(len(set(row[list(chosen)])) for row in labels)


@given(SEEDS, st.integers(1, 8), st.integers(1, 6), st.data())
def test_the_cover_is_greedy_and_within_its_guarantee(seed, n, channels, data):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, data.draw(st.integers(1, n)), (channels, n))
    norms, keep = rng.permutation(n) + 1.0, data.draw(st.integers(1, n))
    chosen, left = cover(labels, norms, keep)
    assert len(set(chosen.tolist())) == keep
    best = max(covered(labels, some) for some in itertools.combinations(range(n), keep))
    assert covered(labels, chosen) >= (1 - 1 / np.e) * best
    taken: list[int] = []
    for pick in chosen:  # each is the best at its time, ties by norm; all covered: counting starts anew
        fresh = [j for j in range(n) if j not in chosen[: len(taken)]]
        gains = {j: covered(labels, [*taken, j]) - covered(labels, taken) for j in fresh}
        if not any(gains.values()):
            break
        assert pick == max(fresh, key=lambda j: (gains[j], norms[j]))
        taken.append(pick)
    if len(taken) == keep:
        assert left.tolist() == [covered(labels, [*taken, j]) - covered(labels, taken) for j in range(n)]


def test_counting_starts_anew_when_all_is_covered():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    chosen, _ = cover(labels, np.array([4.0, 3.0, 2.0, 1.0]), 4)
    assert chosen.tolist() == [0, 2, 1, 3]  # without it, 1 and 3 would come by norm, and 1 before 3 as well
    chosen, _ = cover(np.array([[0, 0, 0, 1]]), np.array([4.0, 3.0, 2.0, 1.0]), 3)
    assert chosen.tolist() == [0, 3, 1]


def test_neighbours_that_tie_join_in_pairs():
    """Of equal gaps every other closes at once; were all of them closed, one cluster would have swallowed the rest."""
    order, heights = ward_of_numbers(np.arange(16.0)[None])
    for clusters in (8, 4, 2):
        assert np.bincount(cut_numbers(order, heights, clusters)[0]).tolist() == [16 // clusters] * clusters
