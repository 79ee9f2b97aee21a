"""Parameters and MACs, counted by hand beside the code."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim_merge.costs import Costs, count, einsum_macs
from onnxslim_merge.errors import InternalError

OPSET = '<ir_version: 8, opset_import: ["" : 17]>\n'


def counted(text, shapes=None, batch=1, opset=OPSET):
    return count(gs.import_onnx(onnx.parser.parse_model(opset + text)), shapes or {}, batch=batch)


def zeros(*sizes):
    return "{" + ", ".join(["0"] * math.prod(sizes)) + "}"


def test_conv_gemm_network_at_batch_two():
    text = f"""g (float[N, 3, 8, 8] x) => (float[N, 5] y)
    <float[4, 3, 3, 3] w = {zeros(4, 3, 3, 3)}, float[4] b = {zeros(4)}, float[4, 1, 3, 3] d = {zeros(4, 1, 3, 3)},
     float[64, 5] f = {zeros(64, 5)}, float[5] c = {zeros(5)}, int64[2] shape = {{0, -1}},
     float[7] unused = {zeros(7)}, float low = {{0}}>
    {{ a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)
       e = Conv <group = 4, pads = [1, 1, 1, 1]> (a, d)
       k = Clip (e, low)
       r = Reshape (k, shape)
       y = Gemm (r, f, c)
       dead = Conv <pads = [1, 1, 1, 1]> (x, w) }}"""
    shapes = {"x": (2, 3, 8, 8), "a": (2, 4, 4, 4), "e": (2, 4, 4, 4), "k": (2, 4, 4, 4), "r": (2, 64), "y": (2, 5)}
    macs = 4 * 4 * 4 * 27 + 4 * 4 * 4 * 9 + 64 * 5
    assert counted(text, shapes, batch=2) == Costs(108 + 4 + 36 + 320 + 5, macs)


def test_transposed_conv_counts_at_its_input():
    text = f"g (float[1, 4, 5, 5] x) => (float[1, 6, 11, 11] y) <float[4, 3, 3, 3] w = {zeros(4, 3, 3, 3)}>"
    text += "{ y = ConvTranspose <group = 2, strides = [2, 2]> (x, w) }"
    assert counted(text, {"x": (1, 4, 5, 5), "y": (1, 6, 11, 11)}) == Costs(108, 100 * 27)


def test_matmul_of_activations_and_transposed_gemm():
    text = "g (float[2, 3, 4, 5] a, float[2, 3, 5, 6] b, float[7, 3] p, float[7, 2] q)"
    text += " => (float[2, 3, 4, 6] y, float[3, 2] z) { y = MatMul (a, b)  z = Gemm <transA = 1> (p, q) }"
    shapes = {"a": (2, 3, 4, 5), "b": (2, 3, 5, 6), "y": (2, 3, 4, 6), "p": (7, 3), "q": (7, 2), "z": (3, 2)}
    assert counted(text, shapes) == Costs(0, 2 * 3 * 4 * 6 * 5 + 3 * 2 * 7)


@given(sizes=st.lists(st.integers(1, 5), min_size=5, max_size=5))
def test_einsum_equals_a_loop_over_its_letters(sizes):
    b, h, i, j, d = sizes
    assert einsum_macs("bhid, bhjd -> bhij", [(b, h, i, d), (b, h, j, d)]) == b * h * i * j * d
    assert einsum_macs("...ij,...jk", [(b, 1, i, j), (h, j, d)]) == b * h * i * j * d
    assert einsum_macs("bhi->ihb", [(b, h, i)]) == 0


def test_einsum_node():
    text = f"g (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w = {zeros(3, 4)}>"
    text += '{ y = Einsum <equation = "ab,bc->ac"> (x, w) }'
    assert counted(text, {"x": (2, 3)}, batch=2) == Costs(12, 12)


def test_shared_weights_count_once_and_equal_names_do_not_confuse():
    text = f"g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {zeros(2, 2)}>"
    text += "{ a = MatMul (x, w)  b = MatMul (a, w)  y = Add (b, w) }"
    shapes = dict.fromkeys("xaby", (2, 2))
    assert counted(text, shapes) == Costs(4, 16)
    graph = gs.import_onnx(onnx.parser.parse_model(OPSET + text))
    graph.nodes[1].inputs[1] = gs.Constant("w", np.zeros((2, 2), np.float32))  # another tensor of the same name
    assert count(graph, shapes, batch=1).parameters == 8


def test_weights_in_constant_nodes_and_a_weight_as_output():
    text = f"g (float[2] x) => (float[2] y, float[3] w) <float[3] w = {zeros(3)}>"
    text += "{ c = Constant <value = float[2] {1, 2}> ()  i = Constant <value = int64[1] {0}> ()"
    text += "  s = Mul (x, c)  y = Gather (s, i) }"
    assert counted(text) == Costs(5, 0)


def test_quantised_weights_count_and_scales_do_not():
    text = f"""g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y)
    <float xs = {{1}}, uint8 xz = {{0}}, int8[3, 2, 1, 1] w = {zeros(3, 2, 1, 1)}, float[3] ws = {zeros(3)},
     int8[3] wz = {zeros(3)}, int32[3] b = {zeros(3)}, float[3] bs = {zeros(3)}>
    {{ q = QuantizeLinear (x, xs, xz)  d = DequantizeLinear (q, xs, xz)
       wd = DequantizeLinear <axis = 0> (w, ws, wz)  bd = DequantizeLinear <axis = 0> (b, bs)
       y = Conv (d, wd, bd) }}"""
    shapes = {"y": (1, 3, 4, 4), "wd": (3, 2, 1, 1)}
    assert counted(text, shapes) == Costs(6 + 3, 16 * 3 * 2)


def test_integer_convolutions_count():
    text = f"""g (uint8[1, 2, 4, 4] x) => (uint8[1, 3, 4, 4] y, int32[1, 5, 4, 4] z)
    <float s = {{1}}, uint8 zp = {{0}}, int8[3, 2, 1, 1] w = {zeros(3, 2, 1, 1)}, float[3] ws = {zeros(3)},
     int8[3] wz = {zeros(3)}, int32[3] b = {zeros(3)}, uint8[5, 2, 1, 1] v = {zeros(5, 2, 1, 1)}>
    {{ y = QLinearConv (x, s, zp, w, ws, wz, s, zp, b)  z = ConvInteger (x, v) }}"""
    shapes = {"y": (1, 3, 4, 4), "z": (1, 5, 4, 4)}
    assert counted(text, shapes) == Costs(6 + 3 + 10, 16 * 6 + 16 * 10)


def test_an_int8_table_behind_gather_is_a_weight_and_its_indices_are_not():
    text = f"""g (int64[2] ids) => (float[2, 4] y, float[2] z)
    <int8[9, 4] table = {zeros(9, 4)}, float s = {{1}}, int8 zp = {{0}}, int64[2] at = {{0, 1}},
     float[5] f = {zeros(5)}>
    {{ g1 = Gather (table, ids)  y = DequantizeLinear (g1, s, zp)  z = Gather (f, at) }}"""
    assert counted(text) == Costs(36 + 5, 0)


def test_low_precision_weights_are_counted_without_reading_them():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "g (float[2] x) => (float[2] y) <float[2] s = {1, 1}> { y = Mul (x, s) }"
    )
    for kind in (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FNUZ, onnx.TensorProto.FLOAT8E5M2):
        tensor = onnx.TensorProto(name=f"w{kind}", data_type=kind, dims=[2], raw_data=bytes(4))
        model.graph.initializer.append(tensor)
        model.graph.node.append(onnx.helper.make_node("Cast", [f"w{kind}"], [f"c{kind}"], to=1))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"c{kind}", 1, [2]))
    int4 = onnx.TensorProto(name="i4", data_type=onnx.TensorProto.INT4, dims=[4], raw_data=bytes(2))
    model.graph.initializer.append(int4)
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["i4", "scale"], ["d4"]))
    model.graph.initializer.append(onnx.helper.make_tensor("scale", 1, [], [1.0]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("d4", 1, [4]))
    assert count(gs.import_onnx(model), {}, batch=1) == Costs(2 + 3 * 2 + 4, 0)


def test_bodies_count_parameters_but_no_macs():
    text = f"""g (bool c, float[2, 2] x) => (float[2, 2] y)
    <float[2, 2] outer = {zeros(2, 2)}, float[2, 2] w = {zeros(2, 2)}>
    {{ h = MatMul (x, w)
       y = If (c) <
         then_branch = t () => (float[2, 2] a) <float[2] inner = {{1, 2}}>
           {{ m = MatMul (h, outer)  a = Add (m, inner) }},
         else_branch = e () => (float[2, 2] b) {{ b = Add (h, outer) }}> }}"""
    shapes = {"x": (2, 2), "h": (2, 2), "y": (2, 2)}
    assert counted(text, shapes) == Costs(4 + 4 + 2, 8)


def test_a_missing_shape_is_our_error():
    text = f"g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {zeros(2, 2)}> {{ y = MatMul (x, w) }}"
    with pytest.raises(InternalError, match="no shape is known for tensor y"):
        counted(text, {"x": (2, 2)})


def test_deep_graphs_need_no_recursion():
    nodes = "".join(f"  t{i + 1} = Relu (t{i})\n" for i in range(3000))
    assert counted("g (float[1] t0) => (float[1] t3000) {" + nodes + "}") == Costs(0, 0)
