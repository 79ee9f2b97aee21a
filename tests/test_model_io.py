from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxslim_merge.errors import InputError, InternalError, OutputError, UnsupportedError
from onnxslim_merge.model_io import build, exporting, full_check, load, runnable, staged_output, staging, to_graph
from onnxslim_merge.model_io.importing import constants_of
from onnxslim_merge.runtime import Runner

TOY = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 4] x, float[N, 4] z) => (float[N, 2] y, float[N, 3] u)
<float[4, 3] w = {1,2,3, 4,5,6, 7,8,9, 10,11,12}, float[3, 2] v = {1,-1, 2,-2, 3,-3}>
{ a = Add (x, z)
  u = MatMul (a, w)
  r = Relu (u)
  y = MatMul (r, v) }"""


@pytest.fixture
def toy() -> onnx.ModelProto:
    return parser.parse_model(TOY)


@pytest.fixture
def toy_path(toy: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(toy, tmp_path / "toy.onnx")
    return tmp_path / "toy.onnx"


def save_external(model: onnx.ModelProto, path: Path) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:  # the parser writes float_data, and only raw_data can go outside
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def toy_feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("x", "z")}


def outputs(model: onnx.ModelProto | Path) -> dict[str, np.ndarray]:
    return Runner(model).run(toy_feeds())


def assert_same_outputs(left: onnx.ModelProto | Path, right: onnx.ModelProto | Path) -> None:
    expected, found = outputs(left), outputs(right)
    assert list(expected) == list(found)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name])  # the same nodes and weights: not one bit may differ


# ---------------------------------------------------------------------------------------------------------------- load


def test_load_from_path_and_from_proto(toy: onnx.ModelProto, toy_path: Path) -> None:
    by_path, by_proto = load(str(toy_path)), load(toy)
    assert by_path.path == toy_path
    assert by_path.folder == toy_path.parent
    assert by_path.size_bytes == toy_path.stat().st_size
    assert by_proto.path is None
    assert by_path.proto == by_proto.proto
    assert load(toy).sha256 == by_proto.sha256
    assert len(by_path.sha256) == 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is not a model at all", "not an ONNX model"),
        (b"\n", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow Lite"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (bytes(1000), "not an ONNX model"),
    ],
)
def test_load_refuses_what_is_no_model(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(InputError, match="is a directory"):
        load(tmp_path)


def test_load_refuses_every_truncation(toy_path: Path, tmp_path: Path) -> None:
    whole = toy_path.read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError):
            load(cut)


@pytest.mark.parametrize("field", ["ir_version", "opset"])
def test_load_refuses_versions_that_onnx_does_not_know(field: str, toy: onnx.ModelProto, tmp_path: Path) -> None:
    if field == "ir_version":
        toy.ir_version = 1000
    else:
        toy.opset_import[0].version = 1000
    (tmp_path / "m.onnx").write_bytes(toy.SerializeToString())
    for model in (toy, tmp_path / "m.onnx"):
        with pytest.raises(InputError, match="onnx"):
            load(model)


def test_load_checks_external_data(toy: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(toy, tmp_path / "m.onnx")
    source = load(path)
    data = tmp_path / "weights.bin"
    assert source.external_files() == [data]
    assert source.size_bytes == path.stat().st_size + data.stat().st_size
    content = data.read_bytes()
    data.write_bytes(content[:-1] + b"\x00" if content[-1] else content[:-1] + b"\x01")
    assert load(path).sha256 != source.sha256
    data.write_bytes(content[:20])
    with pytest.raises(InputError, match="ends beyond"):
        load(path)
    data.unlink()
    with pytest.raises(InputError, match=r"weights\.bin does not exist"):
        load(path)


def test_load_refuses_a_proto_with_external_data(toy: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(toy, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="pass the path"):
        load(onnx.load(path, load_external_data=False))


# ----------------------------------------------------------------------------------------------------- there and back


def test_everything_that_graph_surgeon_loses_is_carried_over(toy: onnx.ModelProto) -> None:
    toy.producer_name, toy.producer_version, toy.domain, toy.model_version = "p", "1.2", "org.d", 7
    toy.doc_string = "model"
    toy.metadata_props.add(key="k", value="v")
    toy.opset_import.add(domain="org.unused", version=3)
    toy.graph.doc_string = "graph"
    toy.graph.metadata_props.add(key="g", value="1")
    for name, scale in (("a", "w"), ("r", "gone"), ("gone", "w")):
        annotation = toy.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    for index, node in enumerate(toy.graph.node):
        node.ClearField("domain")  # the parser writes an empty one
        node.doc_string = f"node {index}"
        node.metadata_props.add(key="n", value=str(index))
    for value in [*toy.graph.input, *toy.graph.output]:
        value.doc_string = f"value {value.name}"
        value.metadata_props.add(key="i", value=value.name)
        value.type.denotation = "TENSOR"
        value.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    toy.graph.initializer[0].doc_string = "weight"
    before = toy.SerializeToString(deterministic=True)

    source = load(toy)
    graph = to_graph(source)
    result = build(graph, source, metadata={"added": "yes"})

    assert toy.SerializeToString(deterministic=True) == before
    expected = onnx.ModelProto()
    expected.CopyFrom(toy)
    expected.metadata_props.add(key="added", value="yes")
    del expected.graph.quantization_annotation[1:]  # a scale, then a tensor, that are in no graph
    del result.graph.value_info[:]
    assert {t.name: numpy_helper.to_array(t).tolist() for t in result.graph.initializer} == {
        t.name: numpy_helper.to_array(t).tolist() for t in expected.graph.initializer
    }
    documented = {tensor.name: tensor.doc_string for tensor in result.graph.initializer}
    assert documented == {"w": "weight", "v": ""}
    for model in (result, expected):
        del model.graph.initializer[:]
    assert result == expected


def test_edits_of_the_graph_do_not_reach_the_source(toy: onnx.ModelProto) -> None:
    before = toy.SerializeToString(deterministic=True)
    source = load(toy)
    graph = to_graph(source)
    graph.nodes[1].inputs[1].name = "renamed"
    graph.nodes[0].domain = "org.new"
    graph.nodes[0].op = "Custom"
    assert build(graph, source).opset_import[-1].domain == "org.new"
    assert toy.SerializeToString(deterministic=True) == before


def test_stale_value_info_is_replaced(toy: onnx.ModelProto) -> None:
    toy.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 3]))
    toy.graph.value_info.append(helper.make_tensor_value_info("dangling", TensorProto.FLOAT, [1]))
    toy.graph.output.pop()  # so that the width of u may change
    source = load(toy)
    graph = to_graph(source)
    first, second = graph.nodes[1], graph.nodes[3]
    first.inputs[1].values = first.inputs[1].values[:, :2]
    second.inputs[1].values = second.inputs[1].values[:2]
    model = build(graph, source)
    full_check(model)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info
    }
    assert shapes == {"a": ["N", 4], "u": ["N", 2], "r": ["N", 2]}


def test_invented_dimension_names_are_not_written() -> None:
    source = load(
        parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 4] x, float[M, 4] z) => (float[P, 4] y) { c = Concat <axis = 0> (x, z)  y = Relu (c) }""")
    )
    model = build(to_graph(source), source)
    (value,) = model.graph.value_info
    assert not value.type.tensor_type.shape.dim[0].WhichOneof("value")
    assert value.type.tensor_type.shape.dim[1].dim_value == 4


def test_a_changed_interface_is_our_error(toy: onnx.ModelProto) -> None:
    source = load(toy)
    graph = to_graph(source)
    graph.outputs.pop()
    with pytest.raises(InternalError):
        build(graph, source)


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_overridable_initializers_are_listed_again(ir_version: int, toy: onnx.ModelProto) -> None:
    toy.ir_version = ir_version
    toy.graph.output.pop()
    v = helper.make_tensor_value_info("v", TensorProto.FLOAT, [3, 2], doc_string="second weight")
    toy.graph.input.insert(1, v)  # between the two real inputs
    toy.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    source = load(toy)
    graph = to_graph(source)
    assert [t.name for t in graph.inputs] == ["x", "z"]
    first, second = graph.nodes[1], graph.nodes[3]
    first.inputs[1].values = first.inputs[1].values[:, :2]
    first.inputs[1].name = "w_new"
    second.inputs[1].values = second.inputs[1].values[:2]
    model = build(graph, source)
    full_check(model)
    names = [value.name for value in model.graph.input]
    assert names == ["x", "v", "z", "w_new"] if ir_version == 3 else ["x", "v", "z"]
    assert [d.dim_value for d in model.graph.input[1].type.tensor_type.shape.dim] == [2, 2]
    assert model.graph.input[1].doc_string == "second weight"
    assert model.ir_version == ir_version
    assert outputs(model)["y"].shape == (3, 2)
    with runnable(graph, source) as bare:
        assert isinstance(bare, onnx.ModelProto)
        assert [value.name for value in bare.graph.input] == ["x", "z"]
        np.testing.assert_array_equal(outputs(bare)["y"], outputs(model)["y"])


TYPES = sorted(
    number
    for name, number in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2")  # float6: no kernel in the checker's IR range
)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("data_type", TYPES, ids=TensorProto.DataType.Name)
def test_every_element_type_survives_bit_for_bit(data_type: int, external: bool, tmp_path: Path) -> None:
    size = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}.get(TensorProto.DataType.Name(data_type), 8)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    count = 4096 * 8
    raw = np.random.default_rng(0).integers(0, 2, count * size // 8 * (dtype.itemsize if size == 8 else 1))
    tensor = TensorProto(name="w", data_type=data_type, dims=[8, 4096], raw_data=raw.astype(np.uint8).tobytes())
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", data_type, [8, 4096])], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    source = load(path)
    imported = to_graph(source)
    (constant,) = constants_of(imported)
    assert constant.values.dtype == dtype
    constant.values = constant.values[::-1][::-1]  # touched: graph-surgeon's own exporter fails for several types
    result = build(imported, source).graph.initializer[0]
    assert result.raw_data == raw.astype(np.uint8).tobytes()
    assert (result.data_type, list(result.dims)) == (data_type, [8, 4096])
    with staged_output(tmp_path / "out.onnx", external_data=True) as stage:
        stage.write(imported, source)
        written = onnx.load(stage.model_path).graph.initializer[0]
        assert written.raw_data == result.raw_data


def test_strings_and_sparse_initializers_survive() -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], np.array([5, 6], np.float32).tobytes(), raw=True)
    indices = helper.make_tensor("i", TensorProto.INT64, [2, 2], np.array([0, 1, 1, 0]).tobytes(), raw=True)
    nodes = [helper.make_node("Identity", ["s"], ["y"]), helper.make_node("Identity", ["t"], ["u"])]
    infos = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])]
    infos += [helper.make_tensor_value_info("u", TensorProto.STRING, [2])]
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        infos,
        [helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"bc"])],
        sparse_initializer=[helper.make_sparse_tensor(values, indices, [2, 2])],
    )
    source = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    found = Runner(build(to_graph(source), source)).run({})
    assert found["y"].tolist() == [[0, 5], [6, 0]]
    assert found["u"].tolist() == ["a", "bc"]


def test_bodies_keep_their_constants_and_shared_ones_are_written_once() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    agraph (bool c, float[2] x) => (float[2] y) <float[2] shared = {1, 2}, float[2] single = {3, 4}>
    { y = If (c) <
        then_branch = t () => (float[2] p) { p1 = Add (x, shared)  p2 = Identity (p1)  p = Mul (p2, single) },
        else_branch = e () => (float[2] q) { k = Constant <value_floats = [5.0, 6.0]> ()
                                            q1 = Sub (x, shared) q = Add (q1, k) } > }""")
    source = load(model)
    for ir_version in (8, 3):
        source.proto.ir_version = ir_version
        result = build(to_graph(source), source)
        full_check(result)
        main = sorted(tensor.name for tensor in result.graph.initializer)
        assert main == (["shared"] if ir_version == 8 else ["k", "shared", "single"])
        for c, expected in ((True, [9, 20]), (False, [6, 7])):
            found = Runner(result).run({"c": np.array(c), "x": np.array([2, 3], np.float32)})
            assert found["y"].tolist() == expected


def test_attributes_that_graph_surgeon_cannot_hold_come_back() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "org.d" : 1]>
    agraph (float[2] x) => (float[2] y) { y = org.d.Op (x) }""")
    node = model.graph.node[0]
    node.attribute.append(helper.make_attribute("empty", [], attr_type=onnx.AttributeProto.INTS))
    node.attribute.append(helper.make_attribute("raw", b"\xff\xfe"))
    node.attribute.append(helper.make_attribute("type", helper.make_tensor_type_proto(1, [2])))
    node.attribute.append(helper.make_attribute("kept", 1.5))
    source = load(model)
    found = {a.name: a for a in build(to_graph(source), source).graph.node[0].attribute}
    assert found == {a.name: a for a in node.attribute}


def test_optional_and_sequence_inputs_pass() -> None:
    source = load(
        parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        agraph (optional(float[N]) x, seq(float[N]) s) => (float[N] y, seq(float[N]) t)
        { y = OptionalGetElement (x)  t = Identity (s) }""")
    )
    result = build(to_graph(source), source)
    full_check(result)
    assert result.graph.input == source.proto.graph.input


@pytest.mark.parametrize("function_opset", [15, 17])
def test_local_functions_are_inlined(function_opset: int) -> None:
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    agraph (float[N, 2] x) => (float[N, 2] y) <float[2] b = {{1, 2}}> {{ y = local.f (x, b) }}
    <opset_import: ["" : {function_opset}], domain: "local"> f (a, c) => (d) {{ s = Add (a, c)  d = Relu (s) }}""")
    source = load(model)
    graph = to_graph(source)
    assert [node.op for node in graph.nodes] == ["Add", "Relu"]
    result = build(graph, source)
    assert not result.functions
    assert result.opset_import == model.opset_import
    found = Runner(result).run({"x": np.array([[-3, 1]], np.float32)})
    assert found["y"].tolist() == [[0, 3]]


def test_above_the_size_limit_build_refuses(toy: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "INLINE_BYTES", 50)
    source = load(toy)
    with pytest.raises(UnsupportedError, match="external data"):
        build(to_graph(source), source)


# ------------------------------------------------------------------------------------------------------- external data


@pytest.fixture
def wide() -> onnx.ModelProto:
    """A toy of two inputs and outputs whose weights are big enough to be stored apart."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        TOY.split("<float[4, 3]", maxsplit=1)[0].replace("3] u", "512] u") + TOY[TOY.index("{ a") :]
    )
    for name, shape in (("w", (4, 512)), ("v", (512, 2))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def test_external_data_is_mapped_not_loaded(wide: onnx.ModelProto, tmp_path: Path) -> None:
    source = load(save_external(wide, tmp_path / "m.onnx"))
    assert not any(tensor.raw_data for tensor in source.proto.graph.initializer)
    graph = to_graph(source)
    for constant in constants_of(graph):
        assert isinstance(constant.values, np.memmap)
        assert not constant.values.flags.writeable
    assert_same_outputs(wide, build(graph, source))


def test_external_data_does_not_depend_on_the_working_folder(
    wide: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    save_external(wide, tmp_path / "a" / "m.onnx")
    monkeypatch.chdir(tmp_path)
    source = load("a/m.onnx")
    assert_same_outputs(wide, build(to_graph(source), source))


def test_an_edited_external_tensor_is_written_whole(wide: onnx.ModelProto, tmp_path: Path) -> None:
    source = load(save_external(wide, tmp_path / "m.onnx"))
    graph = to_graph(source)
    weight = graph.nodes[3].inputs[1]
    weight.values = weight.values * 2
    model = build(graph, source)
    full_check(model)
    np.testing.assert_array_equal(outputs(model)["y"], outputs(wide)["y"] * 2)  # a power of two: exact


def test_runnable_streams_to_a_temporary_file_when_big(wide: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load(wide)
    graph = to_graph(source)
    monkeypatch.setattr(exporting, "RUN_INLINE_BYTES", 1000)
    with runnable(graph, source) as path:
        assert isinstance(path, Path)
        assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
        full_check(path)
        assert_same_outputs(wide, path)
    assert not path.parent.exists()


# -------------------------------------------------------------------------------------------------------------- saving


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an older output and its data; every failed save must leave it as it is."""
    result = tmp_path / "out"
    result.mkdir()
    (result / "out.onnx").write_bytes(b"old")
    (result / "out.onnx.data").write_bytes(b"old data")
    yield result
    assert not [name for name in os.listdir(result) if name.startswith(".")]


@pytest.mark.parametrize("external", [False, True])
def test_a_save_is_whole_and_repeatable(wide: onnx.ModelProto, external: bool, folder: Path) -> None:
    source = load(wide)
    contents = []
    for _ in range(2):
        with staged_output(folder / "out.onnx", external_data=external, source=source) as stage:
            stage.write(to_graph(source), source, metadata={"b": "2", "a": "1"})
            full_check(stage.model_path)
            assert_same_outputs(wide, stage.model_path)
            size = stage.size_bytes()
            assert (folder / "out.onnx").read_bytes() == (contents[0]["out.onnx"] if contents else b"old")
            stage.commit()
        contents.append(tree(folder))
        assert_same_outputs(wide, folder / "out.onnx")
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["out.onnx", "out.onnx.data"]
    assert (contents[0]["out.onnx.data"] == b"old data") is not external
    assert size == sum(len(data) for data in contents[0].values()) - (0 if external else len(b"old data"))


def test_above_two_gigabytes_data_goes_apart_by_itself(
    wide: onnx.ModelProto, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "INLINE_BYTES", 1000)
    source = load(wide)
    with staged_output(folder / "new.onnx", source=source) as stage:
        stage.write(to_graph(source), source)
        stage.commit()
    assert (folder / "new.onnx.data").stat().st_size > (folder / "new.onnx").stat().st_size
    assert_same_outputs(wide, folder / "new.onnx")


def test_without_commit_nothing_appears(wide: onnx.ModelProto, folder: Path) -> None:
    source = load(wide)
    before = tree(folder)
    with staged_output(folder / "out.onnx", external_data=True) as stage:
        stage.write(to_graph(source), source)
    assert tree(folder) == before
    with staged_output(folder / "out.onnx") as stage, pytest.raises(InternalError):
        stage.commit()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")])
def test_an_exception_leaves_no_trace(error: BaseException, wide: onnx.ModelProto, folder: Path) -> None:
    source = load(wide)
    before = tree(folder)

    def save() -> None:
        with staged_output(folder / "out.onnx", external_data=True) as stage:
            stage.write(to_graph(source), source)
            raise error

    with pytest.raises(type(error)):
        save()
    assert tree(folder) == before


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_is_one_clear_line(
    external: bool, wide: onnx.ModelProto, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = load(wide)
    before = tree(folder)
    monkeypatch.setattr(exporting.FileStore, "put", full)
    if not external:
        monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(OutputError, match="the disk is full"),
        staged_output(folder / "out.onnx", external_data=external) as stage,
    ):
        stage.write(to_graph(source), source)
    assert tree(folder) == before


@pytest.mark.parametrize("failing", range(1, 5))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_failed_rename_brings_the_old_files_back(
    failing: int, error: BaseException, wide: onnx.ModelProto, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(wide)
    before = tree(folder)
    real, calls = os.replace, []

    def replace(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == failing:
            raise error
        real(old, new)

    with staged_output(folder / "out.onnx", external_data=True) as stage:
        stage.write(to_graph(source), source)
        monkeypatch.setattr(staging.os, "replace", replace)
        if failing < 4:  # aside, data, model
            with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
                stage.commit()
            assert tree(folder) | before == tree(folder)
        else:
            stage.commit()
    monkeypatch.undo()
    assert (tree(folder) == before) is (failing < 4)


def test_outputs_that_cannot_be_written(wide: onnx.ModelProto, tmp_path: Path) -> None:
    cases = {
        tmp_path / "missing" / "out.onnx": "not an existing folder",
        tmp_path: "is a directory",
        Path("/dev/null"): "not a regular file",
    }
    for path, words in cases.items():
        with pytest.raises(OutputError, match=words), staged_output(path):
            pass


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(staging.tempfile, "mkdtemp", denied)  # tests may run as root, which no mode bits stop
    with pytest.raises(OutputError, match="Permission denied"), staged_output(tmp_path / "out.onnx"):
        pass


@pytest.mark.parametrize("kind", ["same", "symlink", "hard link", "other spelling", "data", "data of output"])
def test_the_input_is_never_overwritten(kind: str, wide: onnx.ModelProto, tmp_path: Path) -> None:
    path = save_external(wide, tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    if kind == "symlink":
        out.symlink_to(path)
    elif kind == "hard link":
        os.link(path, out)
    elif kind == "data of output":
        os.rename(tmp_path / "weights.bin", tmp_path / "out.onnx.data")
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = "out.onnx.data"
        path.write_bytes(model.SerializeToString())
    else:
        (tmp_path / "a").mkdir()
        out = {"same": path, "other spelling": tmp_path / "a" / ".." / "in.onnx", "data": tmp_path / "weights.bin"}[
            kind
        ]
    source = load(path)
    before = tree(tmp_path)
    with (
        pytest.raises(OutputError, match="belongs to the input"),
        staged_output(out, external_data=True, source=source),
    ):
        pass
    assert tree(tmp_path) == before


def test_long_chains_do_not_recurse() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(3000)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("t0", "t3000")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    source = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    imported = to_graph(source)
    assert isinstance(imported, gs.Graph)
    assert len(build(imported, source).graph.node) == 3000
