"""Everything that can be wrong with what a user gives: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_tools import OPAQUE, WIDE, Cli, cli, finished, one_line, process, saved
from textmodels import parse

__all__ = ["cli"]  # a fixture


# models


def test_missing_file(cli: Cli):
    assert "nowhere.onnx does not exist" in cli.refused(3, "nowhere.onnx", "old.onnx")


def test_folder_instead_of_a_model(cli: Cli):
    assert "is a directory" in cli.refused(3, cli.folder, "old.onnx")


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x00" * 100, b"PK\x03\x04zip", b"\x08\x08"])
def test_not_onnx(cli: Cli, content: bytes):
    Path("bad.onnx").write_bytes(content)
    assert "bad.onnx" in cli.refused(3, "bad.onnx", "old.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(cli: Cli, share: float):
    data = saved(Path("wide.onnx"), WIDE).read_bytes()
    Path("wide.onnx").write_bytes(data[: int(len(data) * share)])
    assert "wide.onnx" in cli.refused(3, "wide.onnx", "old.onnx")


def test_truncated_external_data(cli: Cli):
    onnx.save(parse(WIDE), "wide.onnx", save_as_external_data=True, location="weights.bin")
    os.truncate("weights.bin", 1000)
    assert "weights.bin" in cli.refused(3, "wide.onnx", "old.onnx")
    Path("weights.bin").unlink()
    assert "weights.bin" in cli.refused(3, "wide.onnx", "old.onnx")


@pytest.mark.parametrize(("field", "version"), [("ir", 99), ("opset", 99)])
def test_version_from_the_future(cli: Cli, field: str, version: int):
    saved(Path("new.onnx"), **{field: version})
    assert "new.onnx" in cli.refused(3, "new.onnx", "old.onnx")


def test_model_that_the_checker_refuses(cli: Cli):
    model = parse("bad (float[N] x) => (float[N] y) { y = Relu (z) }")
    onnx.save(model, "bad.onnx")
    assert "refused by onnx.checker" in cli.refused(3, "bad.onnx", "old.onnx")


@pytest.mark.parametrize("target", [["old.onnx"], []])
def test_operator_that_the_runtime_does_not_know(cli: Cli, target: list[str]):
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>' + OPAQUE)
    model.graph.value_info.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 4), np.float32), "w"))
    onnx.save(model, "odd.onnx")
    text = cli.refused(6, "odd.onnx", *target)
    assert "my.domain" in text
    assert "Foo" in text


# options


@pytest.mark.parametrize("ratio", ["1", "-0.1", "nan", "inf", "half"])
def test_ratio_out_of_range(cli: Cli, ratio: str):
    assert "--ratio" in cli.refused(2, cli.model, "old.onnx", "--ratio", ratio)


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--ratio-for", "nothing=0.5", "matches"),
        ("--ratio-for", "(=0.5", "regular expression"),
        ("--ratio-for", "fc1=2", "at least 0 and below 1"),
        ("--ratio-for", "fc1", "REGEX=R"),
        ("--ratio-for", "=0.5", "REGEX=R"),
        ("--ratio-for", "fc1=x", "not a number"),
        ("--exclude", "nothing", "matches"),
        ("--exclude", "[", "regular expression"),
        ("--threshold", "1.5", "cosine"),
        ("--lam", "-1", "between 0 and 1"),
        ("--min-channels", "0", "at least 1"),
        ("--min-channels", "1.5", "whole number"),
        ("--channel-multiple", "0", "at least 1"),
        ("--channel-multiple", "most", "whole number"),
        ("--seed", "x", "whole number"),
        ("--seed", "-1", "at least 0"),
        ("--criterion", "best", "Choose from"),
        ("--compensation", "best", "Choose from"),
        ("--scope", "best", "Choose from"),
        ("--input-shapes", "x", "NAME:1,3,224,224"),
        ("--input-shapes", "x:", "NAME:1,3,224,224"),
        ("--input-shapes", "x:1,two", "NAME:1,3,224,224"),
        ("--input-shapes", "z:1,6", "no such input"),
        ("--input-shapes", "x:1,7", "does not fit"),
        ("--input-shapes", "x:0,6", "at least 1"),
        ("--mean", "0.5,x", "not a number"),
        ("--std", "0", "must not be 0"),
        ("--scale", "inf", "not a finite number"),
        ("--layout", "chw", "Choose from"),
        ("--channel-order", "grb", "Choose from"),
        ("--providers", "abacus", "cpu, cuda"),
        ("--score-output", "z", "no such output"),
        ("--custom-ops", "nowhere.so", "no such file"),
        ("--plan", "nowhere.json", "does not exist"),
        ("--calibration-data", "nowhere.npz", "no such"),
    ],
)
def test_bad_option_value(cli: Cli, option: str, value: str, word: str):
    code = 3 if option in ("--plan", "--calibration-data") else 2
    text = cli.refused(code, cli.model, "old.onnx", option, value)
    assert word in text
    assert option in text or code == 3


def test_library_that_does_not_load(cli: Cli):
    Path("bad.so").write_text("no library")
    assert "bad.so does not load" in cli.refused(6, cli.model, "old.onnx", "--custom-ops", "bad.so")


def test_input_shape_given_twice(cli: Cli):
    assert "twice" in cli.refused(2, cli.model, "--input-shapes", "x:1,6", "--input-shapes", "x:2,6")


# calibration data


@pytest.mark.parametrize(
    ("name", "array", "word"),
    [
        ("z", np.ones((4, 6), np.float32), "'x'"),
        ("x", np.ones((4, 7), np.float32), "[4, 7]"),
        ("x", np.ones(6, np.float32), "[6]"),
        ("x", np.ones((4, 6), np.int64), "int64"),
        ("x", np.full((4, 6), np.nan, np.float32), "NaN"),
        ("x", np.ones((0, 6), np.float32), "empty"),
    ],
    ids=["name", "shape", "rank", "dtype", "NaN", "empty"],
)
def test_calibration_data_that_does_not_fit(cli: Cli, name: str, array: np.ndarray, word: str):
    np.savez("data.npz", **{name: array})
    text = cli.refused(3, cli.model, "old.onnx", "--calibration-data", "data.npz")
    assert word in text
    assert "data.npz" in text


def test_damaged_calibration_data(cli: Cli):
    np.savez("data.npz", x=np.ones((4, 6), np.float32))
    os.truncate("data.npz", 100)
    assert "data.npz" in cli.refused(3, cli.model, "old.onnx", "--calibration-data", "data.npz")


# places to write to


@pytest.mark.parametrize("where", ["nowhere/out.onnx", "tmp", "/dev/null", "/proc/out.onnx", "x" * 300])
@pytest.mark.parametrize("option", ["OUT", "--save-plan", "--report"])
def test_unwritable_place_is_noticed_before_the_work(
    cli: Cli, where: str, option: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("onnxslim_merge.pipeline.prepare", lambda *a, **k: pytest.fail("work was done"))
    target = [where] if option == "OUT" else ["old.onnx", option, where]
    assert where in cli.refused(7, cli.model, *target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(cli: Cli):
    Path("locked").mkdir(mode=0o500)
    assert "locked" in cli.refused(7, cli.model, "locked/out.onnx")


def test_output_is_the_input(cli: Cli):
    Path("soft.onnx").symlink_to(cli.model)
    os.link(cli.model, "hard.onnx")
    for output in ("in.onnx", "./tmp/../in.onnx", cli.model, "soft.onnx", "hard.onnx"):
        assert "is the same file as the input model" in cli.refused(2, "in.onnx", output)
        assert "is the same file as the input model" in cli.refused(2, "soft.onnx", output)


@pytest.mark.parametrize("option", ["OUT", "--save-plan", "--report"])
def test_target_is_the_input_models_data(cli: Cli, option: str):
    onnx.save(parse(WIDE), "wide.onnx", save_as_external_data=True, location="weights.bin")
    target = ["weights.bin"] if option == "OUT" else ["old.onnx", option, "weights.bin"]
    assert "weights.bin" in cli.refused(2, "wide.onnx", *target)


@pytest.mark.parametrize(
    "targets",
    [
        ["old.onnx", "--save-plan", "old.onnx"],
        ["old.onnx", "--report", "./old.onnx"],
        ["old.onnx", "--report", "a.json", "--save-plan", "a.json"],
        ["old.onnx", "--report", "a.npz", "--save-plan", "a.json"],
        ["old.onnx", "--save-plan", "a.npz"],
        ["a.npz", "--save-plan", "a.json"],
        ["old.onnx", "--report", "in.onnx"],
        ["old.onnx", "--save-plan", "in.onnx"],
        ["old.onnx", "--external-data", "--report", "old.onnx.data"],
        ["old.onnx", "--calibration-data", "data.npz", "--report", "data.npz"],
        ["old.onnx", "--calibration-data", ".", "--report", "data.npz"],
        ["old.onnx", "--calibration-data", "data.npz", "--save-plan", "data.json"],
        ["--save-plan", "in.onnx"],
    ],
    ids=" ".join,
)
def test_two_files_of_one_name(cli: Cli, targets: list[str]):
    np.savez("data.npz", x=np.ones((4, 6), np.float32))
    assert "is the same file as" in cli.refused(2, cli.model, *targets)


def test_saved_plan_over_the_replayed_one(cli: Cli):
    cli.ok(cli.model, "--save-plan", "plan.json")
    assert "--plan" in cli.refused(2, cli.model, "old.onnx", "--plan", "plan.json", "--save-plan", "plan.json")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_write_that_breaks_off(tmp_path: Path):
    model = saved(tmp_path / "wide.onnx", WIDE)
    (tmp_path / "old.onnx").write_bytes(b"an older output")
    before = snapshot(tmp_path)
    limit = ("bash", "-c", 'ulimit -f 100; exec "$@"', "bash")  # no file above 100 KiB
    code, out, err = finished(process(tmp_path, model, "old.onnx", prefix=limit))
    assert (code, out) == (7, "")
    assert "old.onnx cannot be written" in one_line(err)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("option", ["OUT", "--save-plan"])
def test_full_disk(cli: Cli, option: str):
    saved(Path("wide.onnx"), WIDE)
    disk = Path("disk")
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no right to mount here")
    try:
        (disk / "old.onnx").write_bytes(b"an older output")
        target = [disk / "old.onnx"] if option == "OUT" else ["old.onnx", option, disk / "old.onnx"]
        text = cli.refused(7, "wide.onnx", *target)
        assert "cannot" in text
        assert "disk is full" in text or "No space left" in text
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("broken", ["plan.json", "plan.npz", "report.json", "old.onnx"])
def test_all_files_appear_or_none(cli: Cli, broken: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("plan.json", "report.json"):  # plan.npz is new
        Path(name).write_bytes(b"older")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == broken and b"older" not in Path(source).read_bytes():
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    options = ["--save-plan", "plan.json", "--report", "report.json"]
    assert broken in cli.refused(7, cli.model, "old.onnx", *options)


# the run itself


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_interrupt(tmp_path: Path, wait: float, sent: signal.Signals):
    model = saved(tmp_path / "wide.onnx", WIDE)
    (tmp_path / "old.onnx").write_bytes(b"an older output")
    before = snapshot(tmp_path)
    run = process(tmp_path, model, "old.onnx", "--save-plan", "plan.json", "--report", "report.json")

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".old.onnx.*/*")) and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        run.send_signal(sent)

    code, out, err = finished(run, interrupt)
    assert (code, out) == (130, "")
    assert one_line(err) == "interrupted"
    assert snapshot(tmp_path) == before
    assert not list((tmp_path / "tmp").iterdir())
    assert not list(tmp_path.glob(".*"))


def test_onnxruntime_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = cli.refused(2, cli.model, "old.onnx")
    assert 'pip install "onnxslim-merge[cpu]"' in text
    assert 'pip install "onnxslim-merge[gpu]"' in text


def test_internal_error(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("onnxslim_merge.pipeline.analyse_channels", broken)
    text = cli.refused(8, cli.model, "old.onnx")
    assert "KeyError" in text
    assert "please report this" in text
    assert "--debug" in text
    code, _, err = cli.run(cli.model, "old.onnx", "--debug")
    assert code == 8
    assert err.startswith("Traceback")
    assert one_line(err.splitlines()[-1] + "\n") == text
