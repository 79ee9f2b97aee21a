"""The command line end to end: what it writes, what it prints, how every option travels, how plans are replayed."""

from __future__ import annotations

import importlib.abc
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from cli_tools import CNN, CPU, ROOT, WIDE, Cli, cli, finished, one_line, outputs, process, saved
from textmodels import parse, weights

import onnxslim_merge
from onnxslim_merge import SlimPlan
from onnxslim_merge.__main__ import start
from onnxslim_merge.cli import main
from onnxslim_merge.errors import InputError, OutputError, UsageError
from onnxslim_merge.parsing import parse_input_shapes
from onnxslim_merge.settings import RatioRule, Settings

__all__ = ["cli"]  # a fixture


def widths(path: str | Path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}


# the ordinary run


def test_slims_verifies_writes_and_reports(cli: Cli):
    out = cli.ok("in.onnx", "out.onnx")
    assert "out.onnx" in out
    assert "16 -> 8" in out
    assert "12 -> 6" in out
    small = onnx.load("out.onnx")
    onnx.checker.check_model(small, full_check=True)
    assert {node.name for node in small.graph.node} >= {"fc1", "fc2", "fc3"}
    assert widths("out.onnx")["w1"] == [6, 8]
    assert outputs("out.onnx", np.ones((5, 6), np.float32)).shape == (5, 4)
    assert set(cli.files()) == {"in.onnx", "old.onnx", "out.onnx", "tmp/"}


def test_processes_write_the_same_bytes(tmp_path: Path):
    saved(tmp_path / "in.onnx", CNN)
    runs = [process(tmp_path, "in.onnx", f"{i}.onnx", "--save-plan", f"{i}.json") for i in range(2)]
    for run in runs:
        code, out, err = finished(run)
        assert (code, err) == (0, "")
        assert "parameters" in out
    for suffix in (".onnx", ".json", ".npz"):
        assert (tmp_path / f"0{suffix}").read_bytes() == (tmp_path / f"1{suffix}").read_bytes()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("arguments", [[], ["old.onnx", "--dry-run"], ["--dry-run"]])
def test_dry_run_writes_nothing(cli: Cli, arguments: list[str]):
    before = cli.files()
    out = cli.ok("in.onnx", *arguments)
    assert "16 -> 8" in out
    assert "dry run: no model written" in out
    assert cli.files() == before


def test_dry_run_writes_the_plan_and_report_that_were_asked_for(cli: Cli):
    cli.ok("in.onnx", "old.onnx", "--dry-run", "--save-plan", "plan.json", "--report", "report.json")
    assert cli.old.read_bytes() == b"an older output"
    assert json.loads(Path("report.json").read_text())["fidelity"]["relative_l2"] is None
    cli.ok("in.onnx", "direct.onnx")
    cli.ok("in.onnx", "out.onnx", "--plan", "plan.json")
    assert Path("out.onnx").read_bytes() == Path("direct.onnx").read_bytes()


def test_report_has_the_promised_keys(cli: Cli):
    np.savez("data.npz", x=np.ones((40, 6), np.float32))
    cli.ok("in.onnx", "out.onnx", "--report", "report.json", "--calibration-data", "data.npz", "--providers", "cpu")
    report = json.loads(Path("report.json").read_text())
    for key in ("parameters", "macs", "size_bytes"):
        assert set(report[key]) == {"before", "after"}
        assert report[key]["after"] < report[key]["before"]
    assert report["size_bytes"] == {"before": os.stat("in.onnx").st_size, "after": os.stat("out.onnx").st_size}
    fidelity = report["fidelity"]
    assert set(fidelity) >= {"relative_l2", "cosine", "max_abs", "top1_agreement", "samples", "source"}
    assert (fidelity["samples"], fidelity["source"]) == (40, "data.npz")
    assert report["twin_max_error"] < 1e-4
    assert [set(row) >= {"provider", "before_ms", "after_ms", "speedup"} for row in report["speed"]] == [True]
    assert report["speed"][0]["provider"] == CPU
    for group in report["groups"]:
        assert set(group) == {"name", "channels_before", "channels_after", "status", "reason"}
    assert {(g["channels_before"], g["channels_after"]) for g in report["groups"]} == {(16, 8), (12, 6), (4, 4)}
    assert report["refusals"]
    for refusal in report["refusals"]:
        assert set(refusal) == {"tensor", "axis", "node", "op_type", "reason"}
    assert report["elapsed_s"] > 0


def test_verbose_shows_the_time_of_each_stage(cli: Cli):
    out = cli.ok("in.onnx", "out.onnx", "--verbose")
    for stage in ("load", "prepare", "analyse", "select", "merge", "rewrite", "verify", "speed"):
        assert stage in out


def test_external_data(cli: Cli):
    saved(cli.model, WIDE)  # the weights of the other model are too small to be put elsewhere
    cli.ok("in.onnx", "out.onnx", "--external-data")
    assert Path("out.onnx.data").stat().st_size > 256 * 256 * 4
    assert Path("out.onnx").stat().st_size < 10_000
    assert outputs("out.onnx", np.ones((64, 256), np.float32)).shape == (64, 4)


def test_calibration_folder_and_input_shapes(cli: Cli):
    Path("data").mkdir()
    np.save("data/a.npy", np.ones((3, 6), np.float64))
    np.save("data/b.npy", np.ones((4, 6), np.float32))
    out = cli.ok("in.onnx", "out.onnx", "--calibration-data", "data", "--input-shapes", "x:2,6")
    assert "7 samples" in out


def test_later_report_replaces_the_earlier_one(cli: Cli):
    Path("report.json").write_text("older")
    cli.ok("in.onnx", "out.onnx", "--report", "report.json")
    assert json.loads(Path("report.json").read_text())["output"]["path"] == "out.onnx"
    assert set(cli.files()) == {"in.onnx", "old.onnx", "out.onnx", "report.json", "tmp/"}


# options


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line hands to `slim`; nothing else is done."""
    seen: dict[str, Any] = {}

    def spy(model: Path, output: Path | None, **options: Any) -> SimpleNamespace:
        seen.update(options, model=model, output=output)
        del seen["progress"]
        return SimpleNamespace(report=None)

    monkeypatch.setattr("onnxslim_merge.cli.slim", spy)
    monkeypatch.setattr("onnxslim_merge.cli._print", lambda report, verbose: seen.update(verbose=verbose))
    return seen


NOTHING = {"plan": None, "save_plan": None, "report": None, "dry_run": False, "verbose": False}


def test_what_is_not_given_is_not_passed(passed: dict[str, Any]):
    assert main(["a.onnx", "b.onnx"]) == 0
    assert passed == NOTHING | {"model": Path("a.onnx"), "output": Path("b.onnx")}


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--ratio", "0"], "ratio", 0.0),
        (["--scope", "inner"], "scope", "inner"),
        (["--ratio-for", "a=b=0.3", "--ratio-for", r"x\.(0|1)/=0"], "ratio_for", ("a=b=0.3", r"x\.(0|1)/=0")),
        (["--ratio-for=-x=0.3"], "ratio_for", ("-x=0.3",)),
        (["--min-channels", "4"], "min_channels", 4),
        (["--channel-multiple", "8"], "channel_multiple", 8),
        (["--channel-multiple", "auto"], "channel_multiple", "auto"),
        (["--exclude", "a", "--exclude", "b"], "exclude", ("a", "b")),
        (["--criterion", "impact"], "criterion", "impact"),
        (["--compensation", "none"], "compensation", "none"),
        (["--threshold", "0"], "threshold", 0.0),
        (["--threshold", "-1"], "threshold", -1.0),
        (["--lam", "0"], "lam", 0.0),
        (["--input-shapes", "a:0:1,3", "--input-shapes", "b:2"], "input_shapes", ("a:0:1,3", "b:2")),
        (["--calibration-data", "d.npz"], "calibration_data", Path("d.npz")),
        (["--mean", "-0.5,0,1"], "mean", "-0.5,0,1"),
        (["--std", "0.5"], "std", "0.5"),
        (["--scale", "1/255"], "scale", "1/255"),
        (["--layout", "nhwc"], "layout", "nhwc"),
        (["--channel-order", "bgr"], "channel_order", "bgr"),
        (["--providers", "cpu,cuda"], "providers", ("cpu", "cuda")),
        (["--providers", "cpu", "--providers", "cuda"], "providers", ("cpu", "cuda")),
        (["--score-output", "y"], "score_output", "y"),
        (["--keep-batchnorm"], "keep_batchnorm", True),
        (["--save-plan", "p.json"], "save_plan", Path("p.json")),
        (["--plan", "p.json"], "plan", Path("p.json")),
        (["--dry-run"], "dry_run", True),
        (["--report", "r.json"], "report", Path("r.json")),
        (["--external-data"], "external_data", True),
        (["--custom-ops", "a.so", "--custom-ops", "b.so"], "custom_ops", (Path("a.so"), Path("b.so"))),
        (["--seed", "0"], "seed", 0),
        (["--verbose"], "verbose", True),
        (["--debug"], "verbose", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_every_option_arrives(passed: dict[str, Any], arguments: list[str], name: str, value: object):
    assert main(["a.onnx", "b.onnx", *arguments]) == 0
    assert passed == NOTHING | {"model": Path("a.onnx"), "output": Path("b.onnx"), name: value}


def test_every_setting_has_an_option(cli: Cli):
    code, out, _ = cli.run("--help")
    assert code == 0
    for name in Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in out
    default = Settings()
    for value in (default.criterion, default.compensation, default.ratio, default.lam, default.scope):
        assert f"(default {value})" in " ".join(out.replace("│", " ").split())


def test_version(cli: Cli):
    assert cli.ok("--version").strip() == onnxslim_merge.provenance.version()


def test_texts_become_settings():
    settings = onnxslim_merge.api.make_settings(
        ratio_for=["a=b=0.25"], input_shapes=["a:0:1,3", "b:2"], custom_ops=["ops.so"], providers="cpu"
    )
    assert settings.ratio_for == (RatioRule("a=b", 0.25),)
    assert settings.input_shapes == {"a:0": (1, 3), "b": (2,)}
    assert settings.custom_ops == (Path.cwd() / "ops.so",)
    assert settings.providers == ("cpu",)
    assert parse_input_shapes([]) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in.onnx", "out.onnx", "third.onnx"],
        ["in.onnx", "--unknown"],
        ["in.onnx", "--ratio"],
        ["in.onnx", "--ratio", "0.1", "--ratio", "0.2"],
        ["in.onnx", "--criterion", "best\nof all"],
    ],
    ids=" ".join,
)
def test_usage_error(cli: Cli, arguments: list[str]):
    assert "--help" in cli.refused(2, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out.onnx", "--compensation", "none", "--threshold", "0.4", "--lam", "0.5"], ["--threshold", "--lam"]),
        (["out.onnx", "--compensation", "mean", "--lam", "0.85"], ["--lam", "--compensation mean"]),
        (["--providers", "cpu", "--score-output", "y"], ["--providers", "--score-output", "dry run"]),
        (["--external-data"], ["--external-data"]),
        (
            ["out.onnx", "--calibration-data", "data.npz", "--compensation", "mean", "--seed", "1"],
            ["--seed", "--calibration-data"],
        ),
        (["out.onnx", "--calibration-data", "data.npz", "--pixels", "0:1"], ["--pixels", "--calibration-data"]),
        (["out.onnx", "--compensation", "least-squares", "--augment", "none"], ["--augment", "--calibration-data"]),
        (["out.onnx", "--compensation", "merge", "--augment", "none"], ["--augment", "least squares"]),
    ],
    ids=" ".join,
)
def test_option_without_effect_is_said(cli: Cli, arguments: list[str], words: list[str]):
    np.savez("data.npz", x=np.ones((40, 6), np.float32))
    code, out, err = cli.run("in.onnx", *arguments)
    assert (code, "16 -> 8" in out) == (0, True)
    assert "warning" in one_line(err)
    assert all(word in err for word in words)


def test_merging_options_have_an_effect(cli: Cli):
    saved(cli.model, CNN)  # lam weighs the biases of convolutions only
    cli.ok("in.onnx", "out.onnx", "--compensation", "merge", "--threshold", "-1", "--lam", "1")
    cli.ok("in.onnx", "strict.onnx", "--compensation", "merge", "--threshold", "1", "--lam", "1")
    cli.ok("in.onnx", "bias.onnx", "--compensation", "merge", "--threshold", "-1", "--lam", "0")
    loose, strict, bias = (weights(onnx.load(name)) for name in ("out.onnx", "strict.onnx", "bias.onnx"))
    assert any(not np.array_equal(loose[name], strict[name]) for name in loose)
    assert any(not np.array_equal(loose[name], bias[name]) for name in loose)


def test_both_wheels_are_one_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def both(*_: object, **__: object) -> None:
        for _ in range(2):
            warnings.warn("both onnxruntime and onnxruntime-gpu\nare installed", stacklevel=2)
        warnings.warn("for developers", DeprecationWarning, stacklevel=2)

    monkeypatch.setattr("onnxslim_merge.pipeline.check_options", both)
    code, _, err = cli.run("in.onnx", "out.onnx")
    assert code == 0
    assert one_line(err) == "warning: both onnxruntime and onnxruntime-gpu are installed"


# interrupts, pipes


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell may start its background jobs with SIGINT ignored, which pytest inherits."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_during_the_renames_waits(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == "old.onnx":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    code, _, err = cli.run("in.onnx", "old.onnx", "--save-plan", "plan.json", "--report", "report.json")
    assert (code, one_line(err)) == (130, "interrupted")
    assert set(cli.files()) == {"in.onnx", "old.onnx", "plan.json", "plan.npz", "report.json", "tmp/"}
    onnx.checker.check_model("old.onnx")


@pytest.mark.usefixtures("interruptible")
def test_second_interrupt_acts_at_once_and_undoes(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onnxslim_merge.model_io.staging._sync", lambda path: [signal.raise_signal(2) for _ in "12"])
    assert cli.refused(130, "in.onnx", "old.onnx", "--save-plan", "plan.json", "--report", "r.json") == "interrupted"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_that_takes_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "onnxslim_merge", "in.onnx"]
    for unbuffered in ("", "1"):
        monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
        with open("/dev/full", "w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert run.returncode == 7
        assert "the report cannot be printed" in one_line(run.stderr)


def test_stdout_that_nobody_reads(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "onnxslim_merge", "in.onnx", "out.onnx"]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")
    onnx.checker.check_model("out.onnx")


# the same from Python


def test_python_api_takes_the_same_options(cli: Cli):
    stages: list[str] = []
    result = onnxslim_merge.slim(
        "in.onnx",
        "out.onnx",
        save_plan="plan.json",
        report="report.json",
        ratio_for="fc1=0.25",
        input_shapes="x:2,6",
        progress=stages.append,
    )
    assert widths("out.onnx")["w1"] == [6, 12]
    assert "verify" in stages
    assert SlimPlan.load(Path("plan.json")).to_json() == result.plan.to_json()
    assert json.loads(Path("report.json").read_text())["parameters"]["after"] == result.report.parameters.after
    in_memory = onnxslim_merge.slim(parse(CNN), save_plan="memory.json")
    assert in_memory.model is not None
    assert Path("memory.npz").exists()


def test_python_api_says_what_is_wrong(cli: Cli):
    with pytest.warns(UserWarning, match="--threshold without effect"):
        onnxslim_merge.slim("in.onnx", dry_run=True, compensation="none", threshold=0.3)
    with pytest.raises(UsageError, match="unknown option 'ration'"):
        onnxslim_merge.slim("in.onnx", ration=0.3)
    with pytest.raises(OutputError, match="nowhere"):
        onnxslim_merge.slim("in.onnx", report="nowhere/report.json")


@pytest.mark.parametrize(
    "option",
    [
        {"ratio_for": 5},
        {"ratio_for": [("fc1", 0.7)]},
        {"exclude": 5},
        {"providers": 3},
        {"input_shapes": 5},
        {"custom_ops": 3},
        {"device": 0},
        {"plan": {}},
        {"report": 5},
        {"output": 5},
        {"keep_batchnorm": "no"},
        {"external_data": 1},
        {"calibration_data": 5},
    ],
    ids=str,
)
def test_options_of_a_wrong_type_are_usage_errors(cli: Cli, option: dict[str, Any]):
    (name,) = option
    with pytest.raises(UsageError) as caught:
        onnxslim_merge.slim("in.onnx", **{"dry_run": True, **option})
    assert name in str(caught.value).replace("-", "_") or "type" in str(caught.value)


def test_arrays_are_calibration_data(cli: Cli):
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.savez("data.npz", x=rows)
    found = [
        onnxslim_merge.slim("in.onnx", calibration_data=data).model.SerializeToString()
        for data in ("data.npz", rows, {"x": rows})
    ]
    assert found[0] == found[1] == found[2]
    named = parse(
        "g (float[N, 6] file) => (float[N, 4] y) <float[6, 8] w, float[8, 4] v> { a = MatMul (file, w)"
        "b = Relu (a) y = MatMul (b, v) }"
    )
    report = onnxslim_merge.slim(named, calibration_data={"file": rows}).report
    assert (report.samples, report.fidelity_source) == (40, "calibration_data")
    for data in ({"other": rows}, rows[:, :2], rows.astype(int), rows[:0]):
        with pytest.raises(InputError, match=r"^calibration_data: "):
            onnxslim_merge.slim("in.onnx", calibration_data=data)


def test_what_is_public_is_loaded_when_it_is_asked_for():
    code = (
        "import sys, onnxslim_merge; assert 'onnx' not in sys.modules; assert 'slim' in dir(onnxslim_merge);"
        "from onnxslim_merge import *; assert onnxslim_merge.slim is slim and SlimError.exit_code == 1"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'slam'"):
        onnxslim_merge.slam  # noqa: B018


def test_an_interrupt_while_it_is_imported_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys):
    class Interrupted(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "onnxslim_merge.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "onnxslim_merge.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert start() == 130
    assert one_line(capsys.readouterr().err) == "interrupted"


def test_an_empty_argument_is_a_variable_that_is_not_set(cli: Cli):
    assert "empty" in cli.refused(2, "in.onnx", "out.onnx", "--calibration-data", "")


def test_too_little_memory_is_no_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 570. TiB")

    monkeypatch.setattr("onnxslim_merge.pipeline.probe_shapes", greedy)
    text = cli.refused(6, "in.onnx", "out.onnx")
    assert "not enough memory (Unable to allocate 570. TiB)" in text
    assert "report" not in text


@pytest.mark.parametrize("kind", ["frozen", "excluded"])
def test_a_ratio_for_what_stays_whole_is_said(cli: Cli, kind: str):
    rule, more = ("fc3=0.5", []) if kind == "frozen" else ("fc1=0.5", ["--exclude", "fc1"])
    out = cli.ok("in.onnx", "--ratio-for", rule, *more)
    assert f"--ratio-for {rule} without effect" in " ".join(out.split())


def test_batchnorm_that_cannot_be_folded_is_none_to_keep():
    """It stands behind a Relu."""
    model = parse(
        "g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) <float[6,3,1,1] w, float[6] s, float[6] b, float[6] m,"
        " float[6] v = {1, 1, 1, 1, 1, 1}, float[4,6,1,1] u>"
        " { c = Conv (x, w) r = Relu (c) n = BatchNormalization (r, s, b, m, v)"
        " y = Conv (n, u) }"
    )
    notes = onnxslim_merge.slim(model, ratio=0.5, keep_batchnorm=True, dry_run=True).report.notes
    assert [note for note in notes if note.startswith("--keep-batchnorm has no effect")]


@pytest.mark.parametrize("option", [["--keep-batchnorm"], ["--allow-inexact", "layernorm"]])
def test_a_switch_that_finds_nothing_to_do_is_said(cli: Cli, option: list[str]):
    assert f"{option[0]} has no effect" in " ".join(cli.ok("in.onnx", "--ratio", "0.5", *option).split())


def test_a_value_of_a_wrong_type_is_shown_in_one_line():
    with pytest.raises(UsageError, match=r"calibration-data.*list") as found:
        onnxslim_merge.slim("in.onnx", calibration_data=[np.zeros((9, 9))])
    assert "\n" not in str(found.value)
