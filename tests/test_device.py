"""The same numerics on torch, as `--device cuda` has them: here on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import LinAlgError
from test_fitting import problem
from test_least_squares import FIT, NETS, calibration
from test_merging import PLANTED
from textmodels import distance, parse, run

import onnxslim_merge
from onnxslim_merge.clustering import distances, ward
from onnxslim_merge.compensation.ridge import best_strength, fit, fit_again
from onnxslim_merge.criteria.surgeon import Term, surgeon
from onnxslim_merge.errors import UsageError
from onnxslim_merge.numerics import CPU, Device
from onnxslim_merge.settings import Settings
from onnxslim_merge.statistics.gram import Gram
from onnxslim_merge.verify import speed

DEVICES = [
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("cuda", marks=[pytest.mark.torch, pytest.mark.gpu]),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    torch = pytest.importorskip("torch")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return str(request.param)


def slim(model, **options):
    return onnxslim_merge.slim(model, dry_run=True, **({"compensation": "merge", "ratio": 0.4} | options))


def test_distances_and_clusters(device):
    rows = np.random.default_rng(0).normal(size=(50, 20))
    there = Device(device)
    assert np.allclose(distances(rows, there), distances(rows), atol=1e-12)
    assert (ward(rows, there).labels(11) == ward(rows).labels(11)).all()


@pytest.mark.parametrize("donors", [1, 3, "all"])
@pytest.mark.parametrize("name", ["dense_relu", "dense_linear", "conv_residual", "conv_two_readers"])
def test_choice_and_merges(device, name, donors):
    model = parse(PLANTED[name][0], seed=3)
    for criterion in ("reprune", "reprune-kernel"):
        one, other = (slim(model, criterion=criterion, donors=donors, device=d).plan for d in ("cpu", device))
        assert [cell.keep for cell in one.cells] == [cell.keep for cell in other.cells]
        assert one.arrays.keys() == other.arrays.keys() != set()
        assert all(np.allclose(one.arrays[key], other.arrays[key], atol=1e-6) for key in one.arrays)


# -- least squares ---------------------------------------------------------------------------------------------------


def sums(device, features, targets) -> Gram:
    found = Gram.zeros(features.shape[1], targets.shape[1], device)
    for part in range(0, len(features), 16):
        found.add(features[part : part + 16], targets[part : part + 16])
    return found


def rows(seed=0):
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(300, 40)) @ np.diag(np.geomspace(1, 1e-1, 40)) + 1
    w = rng.normal(size=(40, 5))
    return f, f @ w + 0.1 * rng.normal(size=(300, 5)), w


@pytest.mark.parametrize(("kind", "accuracy"), [(np.float64, 1e-13), (np.float32, 1e-6)])
def test_sums(device, kind, accuracy):
    """As exact as products within a batch are: both round them, though not in the same order."""
    f, y, w = rows()
    one, other = (sums(d, f.astype(kind), y.astype(kind)) for d in (CPU, Device(device)))
    get, some, few = other.device.get, np.array([7, 3, 4]), np.array([2, 0])
    for name in ("f", "ff", "y", "fy", "yy"):
        expected = getattr(one, name)
        assert get(getattr(other, name)).dtype == np.float64
        np.testing.assert_allclose(get(getattr(other, name)), expected, rtol=0, atol=accuracy * np.abs(expected).max())
    one, other = (gram.of(some).giving(few) for gram in (one, other))
    atol = 20 * accuracy  # what cancels in covariances and errors is ten or twenty times as much as they are
    for expected, found in zip(one.covariances, other.covariances, strict=True):
        np.testing.assert_allclose(get(found), expected, rtol=0, atol=atol * np.abs(expected).max())
    part = w[some][:, few]
    there = other.errors(other.device.put(part), other.device.zeros(2))
    np.testing.assert_allclose(there, one.errors(part, np.zeros(2)), rtol=atol)
    np.testing.assert_allclose(other.variance, one.variance, rtol=atol)


def test_ridges(device):
    """Equal to 1e-9: a factor's rounding grows with the condition, below 1e5 here."""
    (f, y, w), there = rows(1), Device(device)
    anchors, importance = {"plain": 0 * w, "merged": w + 0.3}, np.arange(1.0, 6)
    pairs = [[sums(d, f[part], y[part]) for part in (slice(0, 200), slice(200, 300))] for d in (CPU, there)]
    one, other = (fit(*pair, anchors, importance) for pair in pairs)
    again = [fit_again(pair[1], anchors, one) for pair in pairs]
    for expected, found in ((one, other), again):
        assert (found.anchor, found.strength) == (expected.anchor, expected.strength)
        assert found.strength is not None
        np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.intercept, expected.intercept, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.error, expected.error, rtol=1e-9)
    assert best_strength(*pairs[1], anchors, importance) == pytest.approx(best_strength(*pairs[0], anchors, importance))


@pytest.mark.parametrize("absent", [False, True])
def test_the_surgeon(device, absent, monkeypatch):
    """Prices step by step, through updates and with channels that a consumer lacks; rounding grows with removals."""
    monkeypatch.setattr("onnxslim_merge.criteria.surgeon.DELAYED", 8)
    there, rng = Device(device), np.random.default_rng(5)
    second, weights, blocks = problem(3, channels=60)
    second = second / np.trace(second) * len(second) + 1e-3 * np.eye(len(second))
    lost = 0.1 * rng.normal(size=weights.shape)
    if absent:
        blocks[3, 1], blocks[7] = -1, -1

    def term(d):
        return Term(*(d.put(a.copy()) for a in (second, weights, lost, np.ones(3))), blocks, d)

    (one, other), gone = (term(CPU), term(there)), []
    for _ in range(40):
        expected, found = one.costs(), other.costs()
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * expected.max())
        expected[gone] = np.inf
        gone.append(int(expected.argmin()))
        for each in (one, other):
            each.remove(gone[-1])
    (kept, scores), (same, too) = (surgeon([term(d), term(d)], 60, 15) for d in (CPU, there))
    assert kept.tolist() == same.tolist()
    assert scores.tolist() == too.tolist()


def test_what_is_singular_is_an_error_everywhere(device):
    for there in (CPU, Device(device)):
        zeros = there.zeros(3, 3)
        for attempt in (there.linalg.inverse, there.linalg.factor, there.linalg.cholesky):
            with pytest.raises(LinAlgError):
                attempt(zeros)
        with pytest.raises(LinAlgError):
            there.linalg.solve(there.zeros(2, 3, 3), there.zeros(2, 3, 3))


@pytest.mark.parametrize("name", sorted(NETS))
def test_least_squares_from_file_to_file(device, name, tmp_path, monkeypatch):
    """The same channels, and networks that give the same, as exactly as float32 weights can: seen are 2e-7.

    Weights themselves need not agree: where features depend on each other, several give the same.
    """
    monkeypatch.setattr("onnxslim_merge.statistics.readings.SINGLE", 50)  # products are float32 in some layers
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])
    model = parse(NETS[name], seed=3)
    data, fed = calibration(tmp_path, model)
    options = FIT | {"calibration_data": data, "ratio": 0.4}
    one, other = (onnxslim_merge.slim(model, device=d, **options) for d in ("cpu", device))
    assert [cell.keep for cell in one.plan.cells] == [cell.keep for cell in other.plan.cells] != []
    assert distance(run(one.model, fed), run(other.model, fed)) <= 1e-5


def test_the_device_counts_where_something_is_computed_on_it():
    def idle(**options):
        texts = Settings(device="torch", **options).without_effect({"device"}, measures=True, writes=True, images=True)
        return bool(texts)

    assert not idle()
    assert not idle(compensation="least-squares")
    assert not idle(compensation="none", criterion="greedy")
    assert not idle(compensation="mean", criterion="reprune-kernel")
    assert idle(compensation="mean", criterion="consumer")


def test_what_is_not_there_is_said_in_one_line():
    with pytest.raises(UsageError, match=r"--device 'gpu': choose cpu, cuda, cuda:N or torch"):
        Settings(device="gpu")
    stages: list[str] = []
    with pytest.raises(UsageError, match=r'needs torch: pip install "onnxslim-merge\[torch\]"|sees \d+ GPUs'):
        slim(parse(PLANTED["dense_relu"][0]), device="cuda:99", progress=stages.append)
    assert stages == ["load"]  # before any work
