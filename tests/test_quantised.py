"""Quantised models: what is cut is exact to the bit, means go into integer biases, and equality has a grain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from textmodels import feeds, interface, parse, replace_weights, run, silenced, weights

import onnxslim_merge
from onnxslim_merge.channels.derived import derived_constants
from onnxslim_merge.model_io import load
from onnxslim_merge.prepare import prepare
from onnxslim_merge.verify import speed
from onnxslim_merge.verify.quantised import has_quantisers, output_steps, shaken_scales, within_a_step

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models" / "wide"


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *args, **options: [])


# Steps are powers of two and integers are small, so that every sum is exact in fp32: results are equal to the bit,
# whatever the order of sums and whichever kernel computes them.
EXACT = """g (int8[N, 3, 6, 6] x) => (int8[N, 4, P, Q] y)
<int8[10, 3, 3, 3] wq, int8[8, 10, 1, 1] vq, int8[4, 8, 1, 1] kq, int32[10] bq, int32[8] cq,
 float[10] sw, float sv = {0.0625}, float sx = {0.03125}, float sa = {0.25}, float se = {0.5}, float sy = {1},
 float[10] sb, float sc = {0.015625}, int8 zero = {0}, int8 za = {-7}>
{ xd = DequantizeLinear (x, sx, zero)
  w = DequantizeLinear <axis = 0> (wq, sw)
  b = DequantizeLinear <axis = 0> (bq, sb)
  a0 = Conv <pads = [1, 1, 1, 1]> (xd, w, b)
  r = Relu (a0)
  aq = QuantizeLinear (r, sa, za)
  a = DequantizeLinear (aq, sa, za)
  v = DequantizeLinear (vq, sv, zero)
  c = DequantizeLinear (cq, sc)
  e0 = Conv (a, v, c)
  eq = QuantizeLinear (e0, se, zero)
  e = DequantizeLinear (eq, se, zero)
  k = DequantizeLinear (kq, sv, zero)
  y0 = Conv (e, k)
  y = QuantizeLinear (y0, sy, zero) }"""


def exact_model(seed: int = 0) -> onnx.ModelProto:
    model = parse(EXACT, opset=13, seed=seed)
    rng = np.random.default_rng(seed)
    small = {n: rng.integers(-16, 16, a.shape).astype(a.dtype) for n, a in weights(model).items() if a.ndim == 4}
    biases = {n: rng.integers(-500, 500, weights(model)[n].shape).astype(np.int32) for n in ("bq", "cq")}
    sw = 2.0 ** rng.integers(-6, -3, 10).astype(np.float32)
    return replace_weights(model, small | biases | {"sw": sw, "sb": sw / 32})


def integer_feeds(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    fed = feeds(model, {"N": 3}, seed)
    return {n: np.random.default_rng(seed).integers(-128, 128, a.shape).astype(a.dtype) for n, a in fed.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_plain_removal_is_exact_to_the_bit(seed, ratio):
    model = exact_model(seed)
    result = onnxslim_merge.slim(model, ratio=ratio, compensation="none")
    assert result.report.twin_max_error == 0
    assert interface(result.model) == interface(model)
    onnx.checker.check_model(result.model, full_check=True)
    kept = weights(result.model)
    assert kept["wq"].shape[0] == kept["sw"].size == kept["sb"].size == kept["bq"].size == kept["vq"].shape[1] < 10
    assert all(kept[n].dtype == a.dtype for n, a in weights(model).items() if n in kept)
    fed = integer_feeds(model, seed)
    silent = silenced(model, result.plan.masks, fed)
    for optimize in (False, True):
        small = run(result.model, fed, optimize=optimize)
        assert np.array_equal(run(silent, fed, optimize=False)[0], small[0])
        assert len(np.unique(small[0])) > 10  # not all saturated


def test_the_mean_goes_into_the_int32_bias_and_weights_stay_as_they_are():
    model = exact_model()
    plain = onnxslim_merge.slim(model, ratio=0.4, compensation="none", criterion="l2")
    result = onnxslim_merge.slim(model, ratio=0.4, compensation="mean+merge", criterion="l2")
    before, after = weights(plain.model), weights(result.model)
    kept = next(cell.keep for cell in result.plan.cells if "wq" in cell.producers[0][1] or cell.size == 10)
    assert kept
    for name in ("wq", "vq", "kq", "bq"):
        assert np.array_equal(before[name], after[name])
    assert after["cq"].dtype == np.int32
    assert not np.array_equal(before["cq"], after["cq"])
    assert any("is quantised" in note for note in result.report.notes)
    assert result.report.twin_max_error == 0
    assert result.report.fidelity.equal_share > plain.report.fidelity.equal_share
    # in steps of the scale, the bias moves by what the removed channels contribute on average
    step = weights(model)["sc"]
    moved = (after["cq"].astype(np.int64) - before["cq"]) * step
    assert 0 < np.abs(moved).max() < 100


def test_a_bias_of_int8_takes_no_mean():
    """Its steps are too coarse: nothing is added, and nothing is said to be."""
    text = EXACT.replace("int32[8] cq", "int8[8] cq")
    model = parse(text, opset=13)
    result = onnxslim_merge.slim(replace_weights(model, {"sw": np.full(10, 0.0625, np.float32)}), compensation="mean")
    assert np.isin(weights(result.model)["cq"], weights(model)["cq"]).all()
    assert any("has no bias that could take means" in note for note in result.report.notes)
    assert result.report.twin_max_error == 0


def test_batchnorm_behind_a_quantised_weight_is_not_folded_into_integers():
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4, P, Q] y)
    <int8[10, 3, 3, 3] wq, float tiny, float[10] ga, float[10] be, float[10] me, float[10] var, float[4, 10, 1, 1] v>
    { w = DequantizeLinear (wq, tiny)
      a = Conv (x, w)
      n = BatchNormalization (a, ga, be, me, var)
      u = Relu (n)
      y = Conv (u, v) }"""
    model = parse(text, opset=13)
    result = onnxslim_merge.slim(model, ratio=0.5, compensation="mean+merge")
    ops = [node.op_type for node in result.model.graph.node]
    assert ops.count("BatchNormalization") == 1
    assert weights(result.model)["wq"].dtype == np.int8
    assert result.report.twin_max_error <= 1e-4


def test_the_values_behind_quantisers_are_those_of_the_runtime():
    text = """g (float[2, 10] x) => (float[2, 3] y)
    <int8[10, 3] a, float[3] tiny, int8[3] za, uint8[3, 10] b, float[10] tiny2, uint8[10] zb, float[10, 3] c,
     float tiny3, int8 zc, int4[10, 3] d, float[10] tiny4, float[10, 3] e, float[3] tiny5>
    { a1 = DequantizeLinear <axis = -1> (a, tiny, za)
      b1 = DequantizeLinear (b, tiny2, zb)
      b2 = Transpose <perm = [1, 0]> (b1)
      c0 = QuantizeLinear (c, tiny3, zc)
      c1 = DequantizeLinear (c0, tiny3, zc)
      d1 = DequantizeLinear <axis = 0> (d, tiny4)
      e0 = QuantizeLinear <axis = 1, output_dtype = 22> (e, tiny5)
      e1 = DequantizeLinear <axis = 1> (e0, tiny5)
      s = Sum (a1, b2, c1, d1, e1)
      y = MatMul (x, s) }"""
    model = parse(text, opset=21, ir=10)
    graph = prepare(load(model))
    constants = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    names = ["a1", "b1", "b2", "c1", "d1", "e1"]
    del tapped.graph.output[:]
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    wanted = dict(zip(names, run(tapped, feeds(model, {}), optimize=False), strict=True))
    shapes = {name: array.shape for name, array in wanted.items()} | {"c0": (10, 3), "e0": (10, 3)}
    found = derived_constants(graph.nodes, constants, shapes)
    assert set(found) == set(shapes)
    for name, array in wanted.items():
        assert np.allclose(found[name].values, array, rtol=1e-6, atol=1e-7), name
        assert found[name].shape == array.shape
        assert found[name].dtype == np.float32


def test_half_precision_scales_make_half_precision_values():
    text = """g (float16[N, 3, 6, 6] x) => (float16[N, 4, P, Q] y)
    <int8[10, 3, 3, 3] wq, float16 tiny, int8[4, 10, 1, 1] vq, float16[4] tiny2>
    { w = DequantizeLinear (wq, tiny)
      a = Conv (x, w)
      u = Relu (a)
      v = DequantizeLinear <axis = 0> (vq, tiny2)
      y = Conv (u, v) }"""
    result = onnxslim_merge.slim(parse(text, opset=19, ir=9), ratio=0.5, compensation="mean")
    assert weights(result.model)["wq"].shape == (5, 3, 3, 3)
    assert result.report.twin_max_error <= 1e-4


# -- the grain --------------------------------------------------------------------------------------------------------


def test_a_graph_with_quantisers_is_known():
    assert has_quantisers(prepare(load(exact_model())))
    plain = parse("g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w> { y = MatMul (x, w) }")
    assert not has_quantisers(prepare(load(plain)))


def test_steps_of_outputs():
    text = """g (float[N, 4] x) => (uint8[N, 4] q, float[N, 4] d, float[N, 4] s, float[N, 2] m)
    <float step = {0.25}, uint8 zero = {3}, float[4, 2] w>
    { q = QuantizeLinear (x, step, zero)
      d = DequantizeLinear (q, step, zero)
      s = Softmax (d)
      m = MatMul (d, w) }"""
    assert output_steps(prepare(load(parse(text, opset=13)))) == {"q": 1.0, "d": 0.25, "s": 0.25}


def outputs_of(changes: dict[int, float], size: int = 1000):
    reference = np.arange(size, dtype=np.float64) % 50
    other = reference.copy()
    for place, by in changes.items():
        other[place] += by
    return [{"y": reference}], [{"y": other}]


def test_a_few_single_steps_are_the_grain_and_nothing_more_is():
    assert within_a_step(*outputs_of({}), "y", 1.0)
    assert within_a_step(*outputs_of({i: (-1) ** i for i in range(10)}), "y", 1.0)
    assert not within_a_step(*outputs_of(dict.fromkeys(range(11), 1.0)), "y", 1.0)
    assert not within_a_step(*outputs_of({5: 2.0}), "y", 1.0)
    assert not within_a_step(*outputs_of({5: 1.0}), "y", 0.5)


def test_shaken_scales_differ_in_their_last_bits_only():
    graph = prepare(load(exact_model()))
    before = {t.name: t.values.copy() for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    after = {t.name: t.values for t in shaken_scales(graph.copy()).tensors().values() if isinstance(t, gs.Constant)}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "sw" in changed
    assert not changed & {"wq", "vq", "kq", "bq", "zero"}
    for name in changed:
        assert np.allclose(before[name], after[name], rtol=1e-6)
    assert all(np.array_equal(t.values, before[t.name]) for t in graph.tensors().values() if isinstance(t, gs.Constant))


def test_a_wrong_cut_of_a_quantised_model_is_not_excused(monkeypatch):
    """Scales that are not sliced with their channels, but the first ones are taken."""
    from onnxslim_merge import rewrite as module
    from onnxslim_merge.verify import gates

    honest = module.rewrite

    def wrong(graph, plan, **options):
        gathers = tuple(replace(g, keep=tuple(range(len(g.keep)))) if g.tensor == "sw" else g for g in plan.gathers)
        return honest(graph, replace(plan, gathers=gathers), **options)

    monkeypatch.setattr(gates, "rewrite", wrong)
    result = onnxslim_merge.slim(exact_model(), ratio=0.5, compensation="none")
    assert [note for note in result.report.notes if "our bug" in note]


# -- as ONNX Runtime quantises --------------------------------------------------------------------------------------


class Calibration(CalibrationDataReader):
    """A few batches of noise."""

    def __init__(self, model):
        self.batches = iter([feeds(model, {"N": 4}, seed) for seed in range(3)])

    def get_next(self):
        return next(self.batches, None)


FLOAT = """g (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[12, 3, 3, 3] w, float[12] b, float[12, 1, 3, 3] k, float[12] d, float[12, 12, 1, 1] e, float[12] eb,
 float[10, 12, 3, 3] f, float[10] fb, float[10, 5] v, float[5] c>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (a)
  dw = Conv <group = 12, pads = [1, 1, 1, 1]> (r, k, d)
  r2 = Relu (dw)
  p = Conv (r2, e, eb)
  s = Add (p, r)
  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)
  l = Conv (m, f, fb)
  r3 = Relu (l)
  q = GlobalAveragePool (r3)
  t = Flatten (q)
  y = Gemm (t, v, c) }"""


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_models_quantised_by_onnxruntime(kind, per_channel, tmp_path):
    model = parse(FLOAT, opset=13)
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Calibration(model), quant_format=kind, per_channel=per_channel
    )
    before, losses = onnx.load(tmp_path / "int8.onnx"), []
    for compensation in ("none", "mean+merge"):
        result = onnxslim_merge.slim(before, ratio=0.5, compensation=compensation)
        assert result.report.twin_max_error == 0
        assert not [note for note in result.report.notes if "our bug" in note]
        lost = {output for cell in result.plan.cells if len(cell.keep) < cell.size for _, _, output in cell.producers}
        assert len(lost) == 3  # a and p are one group, and l
        assert result.report.parameters.after < 0.5 * result.report.parameters.before
        losses.append(result.report.fidelity.relative_l2)
        onnx.checker.check_model(result.model, full_check=True)
    assert losses[1] < 0.8 * losses[0]  # the means are in the int32 biases


def test_means_in_biases_of_both_formats_are_the_same(tmp_path):
    """The same integers, read by DequantizeLinear or by QLinearConv: one model of means, two ways to write it."""
    model, biases = parse(FLOAT, opset=13), []
    onnx.save(model, tmp_path / "float.onnx")
    for kind in (QuantFormat.QDQ, QuantFormat.QOperator):
        path = tmp_path / f"{kind}.onnx"
        quantize_static(tmp_path / "float.onnx", path, Calibration(model), quant_format=kind)
        before = weights(onnx.load(path))
        after = weights(onnxslim_merge.slim(path, ratio=0.5, compensation="mean", criterion="l2").model)
        changed = {n for n, a in after.items() if a.dtype == np.int32 and not np.isin(a, before[n]).all()}
        assert {n.removesuffix("_quantized") for n in changed} == {"eb", "fb", "c"}
        biases.append({n: after[n].astype(int) for n in changed})
    for name, bias in biases[0].items():
        assert np.abs(bias - biases[1][name]).max() <= 0.02 * np.abs(bias).max()


@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_plan_of_a_quantised_model_is_replayed_bit_for_bit(kind, tmp_path):
    model = parse(FLOAT, opset=13)
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Calibration(model), quant_format=kind)
    first, again, plan = (tmp_path / name for name in ("a.onnx", "b.onnx", "plan.json"))
    onnxslim_merge.slim(tmp_path / "int8.onnx", first, ratio=0.5, compensation="mean", save_plan=plan)
    assert onnxslim_merge.slim(tmp_path / "int8.onnx", again, plan=plan).report.twin_max_error == 0
    assert first.read_bytes() == again.read_bytes()


def test_dynamically_quantised_models_come_through_whole(tmp_path):
    onnx.save(parse(FLOAT, opset=13), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    result = onnxslim_merge.slim(tmp_path / "int8.onnx", ratio=0.5)
    assert result.report.parameters.after == result.report.parameters.before
    assert "the scale comes from the range of all channels" in {r.reason for r in result.report.refusals}


# -- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the models of ../shared are not here")
@pytest.mark.parametrize("compensation", ["none", "auto", "mean"])
@pytest.mark.parametrize("name", ["mlperftiny_resnet8_qdq", "mlperftiny_vww_qdq", "mlperftiny_kws_dscnn"])
def test_real_quantised_files(name, compensation):
    path = SHARED / f"{name}.onnx"
    result = onnxslim_merge.slim(path, ratio=0.3, compensation=compensation)
    assert result.report.twin_max_error <= 1e-4
    assert not [note for note in result.report.notes if "our bug" in note]
    assert 0.4 < result.report.parameters.after / result.report.parameters.before < 0.6
    assert interface(result.model) == interface(onnx.load(path))
    kinds = {t.data_type for t in result.model.graph.initializer if len(t.dims) == 4}
    assert TensorProto.INT8 in kinds
    if name.endswith("qdq"):
        assert kinds == {TensorProto.INT8}
    assert numpy_helper.to_array(result.model.graph.initializer[0]).size
