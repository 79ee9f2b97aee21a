"""Plans: written, read back, replayed on the same model and on a re-export of it, refused elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_tools import CNN, WIDE, Cli, cli, outputs, saved

import onnxslim_merge
from onnxslim_merge import SlimPlan
from onnxslim_merge.errors import InputError, UsageError
from onnxslim_merge.settings import RECORDED, Settings

__all__ = ["cli"]  # a fixture
MERGING = ["--compensation", "merge"]


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
    given |= {"compensation": "none", "allow_inexact": "layernorm", "geometry": "cosine", "kernel_cut": "layer"}
    given |= {"augment": "none", "pixels": "0:255"}
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
