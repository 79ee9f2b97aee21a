"""The command line end to end: what it writes, what it prints, how every option travels, how plans are replayed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_tools import CPU, ROOT, WIDE, Cli, cli, finished, one_line, process, saved
from textmodels import parse

import onnxslim_merge
from onnxslim_merge import SlimPlan
from onnxslim_merge.cli import main
from onnxslim_merge.errors import InputError, OutputError, UsageError
from onnxslim_merge.settings import RECORDED, RatioRule, Settings, parse_input_shapes

__all__ = ["cli"]  # a fixture
MERGING = ["--compensation", "merge"]
CNN = """cnn (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[8, 3, 3, 3] w1, float[8] g1, float[8] s1, float[8] m1, float[8] var1, float[12, 8, 3, 3] w2, float[12] b2,
 float[5, 12] w3>
{ [conv1] a = Conv <pads = [1,1,1,1]> (x, w1)
  [bn1] n = BatchNormalization (a, g1, s1, m1, var1)
  [act1] r = Relu (n)
  [conv2] c = Conv <pads = [1,1,1,1]> (r, w2, b2)
  [act2] q = Relu (c)
  [pool] p = GlobalAveragePool (q)
  [flat] f = Flatten (p)
  [head] y = Gemm <transB = 1> (f, w3) }"""


def outputs(path: str | Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=[CPU]).run(None, {"x": x})[0]


def widths(path: str | Path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}


def renamed(path: Path, target: Path, *, tensors: bool = False) -> Path:
    """The same model as another exporter would name it."""
    model = onnx.load(path)
    kept = {value.name for value in [*model.graph.input, *model.graph.output]}
    for node in model.graph.node:
        node.name = "renamed_" + node.name
        if tensors:
            for names in (node.input, node.output):
                names[:] = [name if name in kept or not name else "t_" + name for name in names]
    for tensor in model.graph.initializer if tensors else ():
        tensor.name = "t_" + tensor.name
    onnx.save(model, target)
    return target


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
        (["out.onnx", "--calibration-data", "data.npz", "--seed", "1"], ["--seed", "--calibration-data"]),
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
    cli.ok("in.onnx", "out.onnx", *MERGING, "--threshold", "0.4", "--lam", "0.5")


def test_both_wheels_are_one_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def both(*_: object, **__: object) -> None:
        for _ in range(2):
            warnings.warn("both onnxruntime and onnxruntime-gpu\nare installed", stacklevel=2)
        warnings.warn("for developers", DeprecationWarning, stacklevel=2)

    monkeypatch.setattr("onnxslim_merge.pipeline.check_options", both)
    code, _, err = cli.run("in.onnx", "out.onnx")
    assert code == 0
    assert one_line(err) == "warning: both onnxruntime and onnxruntime-gpu are installed"


# plans


@pytest.mark.parametrize("text", ["mlp", "cnn"])
@pytest.mark.parametrize("options", [[], MERGING, ["--compensation", "mean", "--criterion", "impact", "--seed", "3"]])
def test_plan_is_replayed_bit_for_bit(cli: Cli, text: str, options: list[str]):
    if text == "cnn":
        saved(cli.model, CNN)
    cli.ok("in.onnx", "first.onnx", "--save-plan", "plan.json", "--ratio", "0.25", *options)
    cli.ok("in.onnx", "second.onnx", "--plan", "plan.json", "--save-plan", "again.json")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()
    assert Path("plan.json").read_bytes() == Path("again.json").read_bytes()
    assert Path("plan.npz").read_bytes() == Path("again.npz").read_bytes()
    replayed = onnxslim_merge.apply("in.onnx", SlimPlan.load(Path("plan.json")))
    assert replayed.SerializeToString(deterministic=True) == Path("first.onnx").read_bytes()


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("options", [["--compensation", "none"], ["--compensation", "mean+merge", "--seed", "5"]])
def test_plan_fits_a_re_export(cli: Cli, tensors: bool, options: list[str]):
    cli.ok("in.onnx", "first.onnx", "--save-plan", "plan.json", "--ratio", "0.3", *options)
    renamed(cli.model, Path("again.onnx"), tensors=tensors)
    cli.ok("again.onnx", "second.onnx", "--plan", "plan.json", "--save-plan", "again.json")
    first, second = (json.loads(Path(name).read_text()) for name in ("plan.json", "again.json"))
    assert [cell["keep"] for cell in first["cells"]] == [cell["keep"] for cell in second["cells"]]
    assert first["settings"] == second["settings"]
    assert first["source_sha256"] != second["source_sha256"]
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    np.testing.assert_array_equal(outputs("first.onnx", x), outputs("second.onnx", x))


def test_plan_of_another_model(cli: Cli):
    cli.ok("in.onnx", "--save-plan", "plan.json")
    saved(Path("other.onnx"), CNN)
    assert "fc1" in cli.refused(3, "other.onnx", "old.onnx", "--plan", "plan.json")
    saved(Path("wide.onnx"), WIDE)
    assert "fc1" in cli.refused(3, "wide.onnx", "old.onnx", "--plan", "plan.json")


def test_plan_keeps_its_own_settings_only(cli: Cli):
    cli.ok("in.onnx", "--save-plan", "plan.json", "--seed", "7")
    cli.ok("in.onnx", "out.onnx", "--plan", "plan.json", "--input-shapes", "x:4,6")
    given = {"ratio_for": "fc=0.5", "exclude": "fc", "keep_batchnorm": None, "scope": "all", "criterion": "l2"}
    given |= {"compensation": "none"}
    for name in set(RECORDED) - {"input_shapes"}:
        option, value = "--" + name.replace("_", "-"), given.get(name, "1")
        text = cli.refused(
            2, "in.onnx", "old.onnx", "--plan", "plan.json", *([option] if value is None else [option, value])
        )
        assert text.startswith(f"{option} beside --plan")
    with pytest.raises(UsageError, match="--ratio beside --plan"):
        onnxslim_merge.slim("in.onnx", plan="plan.json", ratio=0.5)


def damage(what: str) -> None:
    path, arrays = Path("plan.json"), Path("plan.npz")
    data = json.loads(path.read_text())
    match what:
        case "edited":
            data["cells"][0]["keep"] = [0]
            path.write_text(json.dumps(data))
        case "future":
            path.write_text(json.dumps(data | {"format": 99}))
        case "truncated":
            path.write_bytes(path.read_bytes()[:-20])
        case "no JSON":
            path.write_bytes(b"\xff\xfe")
        case "another JSON":
            path.write_text("[1]")
        case "other arrays":
            np.savez(arrays, **{"0": np.ones(3)})
        case "truncated arrays":
            os.truncate(arrays, arrays.stat().st_size // 2)
        case "no arrays":
            arrays.unlink()
        case "folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    "what",
    [
        "edited",
        "future",
        "truncated",
        "no JSON",
        "another JSON",
        "other arrays",
        "truncated arrays",
        "no arrays",
        "folder",
    ],
)
def test_damaged_plan(cli: Cli, what: str):
    cli.ok("in.onnx", "--save-plan", "plan.json")
    damage(what)
    assert "plan.json" in cli.refused(3, "in.onnx", "old.onnx", "--plan", "plan.json")


def test_plan_laid_out_otherwise_still_fits(cli: Cli):
    cli.ok("in.onnx", "first.onnx", "--save-plan", "plan.json")
    Path("plan.json").write_text(json.dumps(json.loads(Path("plan.json").read_text())))
    cli.ok("in.onnx", "second.onnx", "--plan", "plan.json")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()


def test_plan_arrays_keep_any_name_and_type(tmp_path: Path):
    half = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    names = ["file", "/a/b", "allow_pickle", "", "ä", "x.npy"]
    arrays = {name: np.arange(3).astype(t) for name, t in zip(names, ["f4", "f8", "f2", half, "i8", "f4"], strict=True)}
    plan = SlimPlan("00", Settings(threshold=0.3).record(), arrays=arrays)
    plan.save(tmp_path / "plan.json")
    loaded = SlimPlan.load(tmp_path / "plan.json")
    assert loaded.to_json() == plan.to_json()
    assert list(loaded.arrays) == names
    for name, array in arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)


def test_settings_of_another_version():
    with pytest.raises(InputError, match="do not fit"):
        Settings().with_record({"criterion": "unheard of"})
    with pytest.raises(InputError, match="do not fit"):
        Settings().with_record({"input_shapes": [1]})


# interrupts, pipes


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
