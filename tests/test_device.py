"""The same numerics on torch, as `--device cuda` has them: here on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from test_merging import PLANTED
from textmodels import parse

import onnxslim_merge
from onnxslim_merge.clustering import distances, ward
from onnxslim_merge.errors import UsageError
from onnxslim_merge.numerics import Device
from onnxslim_merge.settings import Settings

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


def test_what_is_not_there_is_said_in_one_line():
    with pytest.raises(UsageError, match=r"--device 'gpu': choose cpu, cuda, cuda:N or torch"):
        Settings(device="gpu")
    stages: list[str] = []
    with pytest.raises(UsageError, match=r'needs torch: pip install "onnxslim-merge\[torch\]"|sees \d+ GPUs'):
        slim(parse(PLANTED["dense_relu"][0]), device="cuda:99", progress=stages.append)
    assert stages == ["load"]  # before any work
