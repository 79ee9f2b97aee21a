"""The report as JSON and on the terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import os

import numpy as np
import pytest
from rich.console import Console
from textmodels import parse, replace_weights

import onnxslim_merge
from onnxslim_merge import remarks
from onnxslim_merge.errors import OutputError
from onnxslim_merge.report import Change, FileRef, GroupReport, RefusalReport, Report, progress, render
from onnxslim_merge.samples import Samples
from onnxslim_merge.verify.fidelity import Fidelity, OutputFidelity
from onnxslim_merge.verify.speed import Speed

CPU = "CPUExecutionProvider"
LOGITS = OutputFidelity("logits", 0.125, 0.9875, 3.5, None, 0.9512)
SPEED = Speed(CPU, 12.3456, 6.1, 2.0239, 1.9, 2.1, 100, CPU, {CPU: 10}, {CPU: 9})
REPORT = Report(
    version="0.1.0",
    source=FileRef("in.onnx", "ab12"),
    output=FileRef("out.onnx", "cd34"),
    parameters=Change(14_997_194_000, 5_399_000_000),
    macs=Change(313_463_808, 100_000_000),
    size_bytes=Change(60_012_345, 21_600_000),
    fidelity=Fidelity(0.125, 0.9875, 3.5, None, 0.9512, (LOGITS,)),
    samples=1024,
    fidelity_source="synthetic (smoothed noise, seed 0)",
    twin_max_error=3.25e-7,
    speed=(SPEED,),
    groups=(
        GroupReport("conv1", 64, 32, "slimmed"),
        GroupReport("head [0]", 10, 10, "kept", "reaches output [logits]"),
    ),
    refusals=(RefusalReport("logits", 1, "Softmax_1", "Softmax", "works along this axis"),),
    notes=("12 channels of conv1 [no donor] were pruned plainly",),
    stages={"load": 0.1, "prepare": 1.25},
    elapsed_s=12.34,
)


def shown(report, *, verbose=False, width=80, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    render(report, console, verbose=verbose)
    return console.file.getvalue()


def test_json_has_the_promised_keys_and_numbers():
    data = json.loads(REPORT.to_json())
    for key, before, after in (
        ("parameters", 14_997_194_000, 5_399_000_000),
        ("macs", 313_463_808, 100_000_000),
        ("size_bytes", 60_012_345, 21_600_000),
    ):
        assert data[key] == {"before": before, "after": after}
    fidelity = data["fidelity"]
    assert {k: fidelity[k] for k in ("relative_l2", "cosine", "max_abs", "top1_agreement", "samples", "source")} == {
        "relative_l2": 0.125,
        "cosine": 0.9875,
        "max_abs": 3.5,
        "top1_agreement": 0.9512,
        "samples": 1024,
        "source": "synthetic (smoothed noise, seed 0)",
    }
    assert fidelity["outputs"][0]["name"] == "logits"
    assert data["twin_max_error"] == 3.25e-7
    assert {"provider": CPU, "before_ms": 12.3456, "after_ms": 6.1, "speedup": 2.0239}.items() <= data["speed"][
        0
    ].items()
    assert data["groups"][1] == {
        "name": "head [0]",
        "channels_before": 10,
        "channels_after": 10,
        "status": "kept",
        "reason": "reaches output [logits]",
    }
    assert data["refusals"] == [
        {
            "tensor": "logits",
            "axis": 1,
            "node": "Softmax_1",
            "op_type": "Softmax",
            "reason": "works along this axis",
        }
    ]
    assert data["elapsed_s"] == 12.34
    assert data["source"] == {"path": "in.onnx", "sha256": "ab12"}
    assert data["stages"] == {"load": 0.1, "prepare": 1.25}
    assert REPORT.to_json() == dataclasses.replace(REPORT).to_json()


def test_json_of_a_dry_run_has_nulls_and_plain_numbers():
    report = Report(
        version="0",
        source=FileRef(),
        output=FileRef(),
        parameters=Change(np.int64(10), np.int64(5)),
        macs=Change(0, 0),
        size_bytes=Change(np.int64(100), None),
        twin_max_error=float("nan"),
        stages={"load": np.float32(0.5)},
    )
    data = json.loads(report.to_json())
    assert data["size_bytes"] == {"before": 100, "after": None}
    assert data["fidelity"]["relative_l2"] is None
    assert data["fidelity"]["samples"] == 0
    assert data["twin_max_error"] is None
    assert data["stages"]["load"] == 0.5
    text = shown(report)
    assert "dry run: no model written" in text
    assert "not measured" in text


def test_write_replaces_whole_files_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    REPORT.write(path)
    assert json.loads(path.read_text()) == REPORT.to_dict()
    assert os.listdir(tmp_path) == ["r.json"]


def test_write_says_what_is_wrong_and_keeps_the_old_file(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"cannot write .*gone.*r\.json"):
        REPORT.write(tmp_path / "gone" / "r.json")
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        REPORT.write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.json"]


def test_totals_are_whole_at_80_columns_without_colour_codes():
    text = shown(REPORT)
    assert max(len(line) for line in text.splitlines() if not line.startswith("note")) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    for number in ("14,997,194,000", "5,399,000,000", "36.0%", "57.2 MiB", "12.346 ms", "2.02x", "1.90-2.10"):
        assert number in text
    for number in ("1.25e-01", "0.987500", "3.50e+00", "95.12%", "3.25e-07"):
        assert number in text
    assert "64 -> 32" in text
    assert "reaches output [logits]" in text
    assert "[no donor]" in text  # square brackets are no markup
    assert "head [0]" in text
    assert "1 axis could not be touched" in text


def test_numbers_stay_whole_in_a_narrow_terminal():
    text = shown(REPORT, width=66)
    for number in ("14,997,194,000", "5,399,000,000", "1.25e-01", "0.987500", "95.12%", "64 -> 32"):
        assert number in text


def test_names_that_a_converter_joined_are_cut_in_notes():
    joined = ";".join(f"model/conv2d_{i}/BiasAdd" for i in range(9))
    report = dataclasses.replace(REPORT, notes=(f"{joined} is refitted; all; is well; a;b",))
    text = " ".join(shown(report, width=200).split())
    assert "...model/conv2d_7/BiasAdd;model/conv2d_8/BiasAdd is refitted; all; is well; a;b" in text
    assert joined in report.to_json()
    report = dataclasses.replace(REPORT, notes=(f"weights ({joined}): shared",))
    assert "weights (...model/conv2d_7/BiasAdd;model/conv2d_8/BiasAdd): shared" in shown(report, width=200)


def test_colour_on_a_terminal_only():
    assert "\x1b[" in shown(REPORT, force_terminal=True, color_system="standard")


def test_plain_ascii_where_the_pipe_is():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    long = dataclasses.replace(REPORT, groups=(GroupReport("a" * 99, 10, 5, "slimmed"),), notes=(";".join("abc" * 30),))
    for report, verbose in ((REPORT, True), (long, False)):
        render(report, console, verbose=verbose)
    console.file.flush()
    assert b"14,997,194,000" in raw.getvalue()


def test_verbose_adds_stages_and_refusals():
    text = shown(REPORT, verbose=True)
    assert "prepare" in text
    assert "1.250" in text
    assert "Softmax_1" in text
    assert "prepare" not in shown(REPORT)


def test_many_groups_collapse_by_reason_unless_verbose():
    kept = tuple(GroupReport(f"kept{i}", 10, 10, "kept", "frozen here") for i in range(30))
    slimmed = tuple(GroupReport(f"slim{i}", 64, 32, "slimmed") for i in range(30))
    report = dataclasses.replace(REPORT, groups=(*kept, *slimmed))
    text = shown(report)
    assert "30 groups" in text
    assert "kept7" not in text
    assert all(f"slim{i} " in text for i in range(30))
    assert "kept7" in shown(report, verbose=True)
    text = shown(dataclasses.replace(REPORT, groups=(*kept, *slimmed, *slimmed)))
    assert "60 groups" in text
    different = tuple(GroupReport(f"slim{i}", 64 + i, 32, "slimmed") for i in range(50))
    assert "and 10 rows more: --verbose" in shown(dataclasses.replace(REPORT, groups=different))


def test_a_provider_that_ran_nothing_is_said():
    speed = dataclasses.replace(SPEED, requested="CUDAExecutionProvider")
    text = shown(dataclasses.replace(REPORT, speed=(speed,)))
    assert "latency, CPU" in text
    assert "CUDA ran no node" in text


def test_long_names_fold_and_numbers_stay():
    output = dataclasses.replace(LOGITS, name="a/very/long/name" * 8)
    report = dataclasses.replace(REPORT, fidelity=dataclasses.replace(REPORT.fidelity, outputs=(output,)))
    text = shown(report)
    assert "0.987500" in text
    assert "…" not in text


def test_progress_is_silent_where_nobody_looks():
    pipe = Console(file=io.StringIO())
    with progress(pipe) as show:
        show("analyse")
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with progress(terminal, enabled=False) as show:
        show("analyse")
    assert pipe.file.getvalue() == terminal.file.getvalue() == ""


def test_progress_shows_the_stage_on_a_terminal():
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress(terminal) as show:
        show("measure [1/2]")
    assert "measure [1/2]" in terminal.file.getvalue()


def test_long_group_names_keep_their_end_and_are_whole_with_verbose():
    name = "model/" + "batch_normalization;" * 10 + "conv2d_13/Conv2D1"
    report = dataclasses.replace(REPORT, groups=(GroupReport(name, 8, 4, "slimmed"),))
    assert "conv2d_13/Conv2D1" in shown(report, width=200)
    assert "model/batch" not in shown(report, width=200)
    assert name in shown(report, width=400, verbose=True)


def test_the_report_says_how_and_warns_of_outputs_with_nothing_in_common():
    model = parse("""g (float[N, 8] x) => (float[N, 3] y) <float[8,4] w, float[4] b, float[4,3] v>
    { h = MatMul (x, w) a = Add (h, b) r = Relu (a) y = MatMul (r, v) }""")
    rng = np.random.default_rng(0)
    strong = np.zeros((4, 3), np.float32)
    strong[:3] = np.eye(3)
    strong[3] = -0.01  # the channel with the largest weights stays, and says the opposite of the others
    rows = rng.normal(size=(8, 4)).astype(np.float32) * [1, 1, 1, 9]
    model = replace_weights(model, {"w": rows.astype(np.float32), "v": strong})
    result = onnxslim_merge.slim(model, ratio=0.75, compensation="none", criterion="l2")
    report = result.report.to_dict()
    assert (report["settings"]["criterion"], report["settings"]["compensation"]) == ("l2", "none")
    assert result.report.fidelity.cosine < 0.5
    assert any("little in common" in note for note in report["notes"])
    whole = onnxslim_merge.slim(model, ratio=0.25, compensation="none", criterion="consumer").report
    assert whole.fidelity.cosine > 0.9
    assert not any("little in common" in note for note in whole.notes)


@pytest.mark.parametrize(
    ("feeds", "alike"),
    [
        ([np.zeros((2, 3)), np.zeros((1, 3))], True),
        ([np.zeros((1, 3)), np.ones((1, 3))], False),
        ([np.arange(6).reshape(2, 3)], False),
        ([np.zeros((1, 3)), np.zeros((1, 4))], False),  # of several sizes
        ([np.zeros((1, 3))], False),  # a single one
    ],
)
def test_samples_that_are_all_the_same(feeds, alike):
    samples = Samples([{"x": array} for array in feeds], sum(map(len, feeds)), "data")
    assert remarks._alike(samples) == alike


@pytest.mark.parametrize(
    ("source", "count", "cosine", "replayed", "said"),
    [
        ("data.npz", 64, 0.9, False, None),
        ("synthetic (noise)", 64, 0.9, False, "fidelity is that on made-up inputs"),
        ("synthetic (noise)", 64, None, False, "fidelity is that on made-up inputs"),
        ("synthetic (noise)", 64, 0.1, True, "(cosine 0.10); these inputs are made up"),
        ("data.npz", 64, 0.1, False, "(cosine 0.10): try a smaller --ratio"),
        ("data.npz", 3, 0.1, False, "(cosine 0.10): give more samples"),
        ("data.npz", 64, 0.1, True, "(cosine 0.10): make the plan anew"),
    ],
)
def test_what_fidelity_does_not_tell_and_what_to_do_is_said(source, count, cosine, replayed, said):
    model = parse("g (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8, 4] v> { a = MatMul (x, w)"
                  "b = Relu (a) y = MatMul (b, v) }")  # fmt: skip
    plan = onnxslim_merge.slim(model, dry_run=True).plan
    found = remarks._unlike(
        plan, Samples([], count, source), dataclasses.replace(REPORT.fidelity, cosine=cosine), replayed
    )
    assert (said in found[0]) if said else not found
    whole = onnxslim_merge.slim(model, ratio=0, dry_run=True).plan
    assert not remarks._unlike(whole, Samples([], count, source), REPORT.fidelity, replayed)
