"""Calibration inputs: specs, files, batches, synthetic values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxslim_merge
from onnxslim_merge.errors import InputError, UnsupportedError, UsageError
from onnxslim_merge.samples import InputSpec, Samples, input_specs, load_samples, synthetic_samples

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
F32 = np.dtype("float32")


def spec(name, *shape, dtype="float32"):
    return InputSpec(name, np.dtype(dtype), shape)


IMAGE = [spec("x", "N", 3, 4, 4)]


def images(count=5, dtype=np.float32):
    return np.arange(count * 48, dtype=dtype).reshape(count, 3, 4, 4)


def test_input_specs_skip_initializers_and_keep_order():
    model = onnx.parser.parse_model(
        HEADER + "g (int64[N, seq] ids, float[2, 2] w, bool[?] m, float s) => (float[2, 2] y)"
        "<float[2, 2] w = {1, 2, 3, 4}> { y = Mul (w, s) }"
    )
    assert "w" in {value.name for value in model.graph.input}
    assert input_specs(model) == [
        spec("ids", "N", "seq", dtype="int64"),
        spec("m", None, dtype="bool"),
        InputSpec("s", F32, ()),
    ]


def test_input_specs_read_zero_and_negative_sizes_as_dynamic():
    model = onnx.parser.parse_model(HEADER + "g (float[3, 4] x) => (float[3, 4] y) { y = Relu (x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert input_specs(model)[0].shape == (None, 4)


def test_input_specs_refuse_sequences_and_unknown_ranks():
    model = onnx.parser.parse_model(HEADER + "g (seq(float[N]) x) => (int64 y) { y = SequenceLength (x) }")
    with pytest.raises(UnsupportedError, match="input x is no dense tensor"):
        input_specs(model)
    model = onnx.parser.parse_model(HEADER + "g (float[N] x) => (float[N] y) { y = Relu (x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedError, match="unknown rank"):
        input_specs(model)


def test_npy_is_cut_into_batches_and_converted(tmp_path):
    np.save(tmp_path / "a.npy", images(5, np.float64))
    samples = load_samples(tmp_path / "a.npy", IMAGE, batch=2)
    assert [len(feed["x"]) for feed in samples.feeds] == [2, 2, 1]
    assert samples.count == 5
    assert samples.source == str(tmp_path / "a.npy")
    joined = np.concatenate([feed["x"] for feed in samples.feeds])
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, images())


def test_npz_by_name_for_two_inputs(tmp_path):
    specs = [spec("a", "N", 2), spec("ids", "N", "L", dtype="int64")]
    np.savez(tmp_path / "d.npz", a=np.ones((3, 2), np.float16), ids=np.arange(12, dtype=np.int32).reshape(3, 4))
    samples = load_samples(tmp_path / "d.npz", specs)
    assert samples.count == 3
    assert {k: v.dtype for k, v in samples.feeds[0].items()} == {"a": F32, "ids": np.dtype("int64")}


def test_fixed_batch_joins_files_cuts_exactly_and_says_what_was_dropped(tmp_path, monkeypatch):
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    np.save(tmp_path / "b.npy", images(4) + 1000)
    np.save(tmp_path / "a.npy", images(3))
    samples = load_samples(tmp_path, [spec("x", 2, 3, 4, 4)])
    assert [feed["x"].shape[0] for feed in samples.feeds] == [2, 2, 2]
    assert samples.count == 6
    assert "last 1 of 7 samples" in samples.source
    expected = np.concatenate([images(3), images(4) + 1000])[:6]  # sorted by file name
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in samples.feeds]), expected)
    with pytest.raises(InputError, match="3 samples, but the model's batch size is fixed at 8"):
        load_samples(tmp_path / "a.npy", [spec("x", 8, 3, 4, 4)])


def test_folder_keeps_files_of_other_sizes_apart(tmp_path):
    for name, side in (("a", 4), ("b", 6)):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 3, side, side), np.float32))
    (tmp_path / "labels.txt").write_text("ignored")
    samples = load_samples(tmp_path, [spec("x", "N", 3, "H", "W")])
    assert [feed["x"].shape for feed in samples.feeds] == [(2, 3, 4, 4), (2, 3, 6, 6)]


def test_inputs_without_a_batch_axis_stay_whole(tmp_path):
    specs = [spec("x", "N", "L"), spec("position", "L"), spec("rate", dtype="int64")]
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 5)), position=np.arange(5.0), rate=np.int64(16))
    samples = load_samples(tmp_path / "a.npz", specs, batch=3)
    assert [(len(f["x"]), len(f["position"]), int(f["rate"])) for f in samples.feeds] == [(3, 5, 16), (1, 5, 16)]
    recurrent = [spec("x", "batch", "L"), spec("state", 2, "batch", 8)]  # cutting axis 0 of x would break state
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 5)), state=np.zeros((2, 4, 8)))
    assert [f["state"].shape for f in load_samples(tmp_path / "b.npz", recurrent, batch=1).feeds] == [(2, 4, 8)]


BAD = {
    "wrong name": ({"y": images()}, "no array 'x', 'y' is no input; expected x float32 [N, 3, 4, 4]"),
    "extra name": ({"x": images(), "labels": np.zeros(5)}, "'labels' is no input"),
    "rank": ({"x": images()[0]}, "shape [3, 4, 4], but the model expects x float32 [N, 3, 4, 4] (the first axis"),
    "fixed size": ({"x": images()[:, :2]}, "shape [5, 2, 4, 4]"),
    "kind": ({"x": images().astype(np.uint8)}, "x is uint8, but the model expects x float32 [N, 3, 4, 4]: convert"),
    "nan": ({"x": np.full((2, 3, 4, 4), np.nan)}, "NaN or infinity"),
    "inf": ({"x": np.full((2, 3, 4, 4), -np.inf)}, "NaN or infinity"),
    "overflow": ({"x": np.full((2, 3, 4, 4), 1e300)}, "too large for float32"),
    "empty": ({"x": images()[:0]}, "x is empty"),
    "objects": ({"x": np.array([None])}, "it holds Python objects; save plain arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_with_one_line(tmp_path, case):
    arrays, message = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError) as caught:
        load_samples(tmp_path / "bad.npz", IMAGE)
    assert message in str(caught.value)
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lengths_and_symbols_must_agree(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros((3, 2)), b=np.zeros((4, 2)))
    with pytest.raises(InputError, match=r"unequal numbers of samples \(a 3, b 4\)"):
        load_samples(tmp_path / "a.npz", [spec("a", "N", 2), spec("b", "N", 2)])
    np.savez(tmp_path / "a.npz", a=np.zeros((3, 2)), b=np.zeros((3, 5)))
    with pytest.raises(InputError, match="L is 2 in a but 5 in b"):
        load_samples(tmp_path / "a.npz", [spec("a", "N", "L"), spec("b", "N", "L")])


def test_integers_must_survive_the_conversion(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2**40]]))
    with pytest.raises(InputError, match="values that int32 cannot"):
        load_samples(tmp_path / "a.npy", [spec("x", "N", 2, dtype="int32")])


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00 cut off")
    (tmp_path / "x.npz").write_bytes(b"PK no archive")
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "text.npz").write_text("renamed")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("x.npy", "not readable"),
        ("x.npz", "not readable"),
        ("text.npz", "neither .npy nor .npz"),
        ("x.txt", "must be .npz, .npy"),
        ("gone.npy", "no such"),
        ("empty", "holds no .npz or .npy"),
    ):
        with pytest.raises(InputError, match=message):
            load_samples(tmp_path / name, IMAGE)
    np.save(tmp_path / "x.npy", images())
    with pytest.raises(InputError, match="fits models with one input"):
        load_samples(tmp_path / "x.npy", [*IMAGE, spec("z", "N")])


@given(total=st.integers(1, 20), batch=st.integers(1, 7), wanted=st.integers(1, 25))
def test_first_takes_exactly_what_was_asked_if_there(total, batch, wanted):
    specs = [spec("x", "N", 2)]
    samples = synthetic_samples(specs, sizes={"x": (2,)}, count=total, seed=3, batch=batch)
    part = samples.first(wanted, specs)
    assert part.count == min(total, wanted) == sum(len(feed["x"]) for feed in part.feeds)
    everything = np.concatenate([feed["x"] for feed in samples.feeds])
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in part.feeds]), everything[: part.count])


def test_first_keeps_fixed_batches_whole():
    specs = [spec("x", 4, 2)]
    samples = Samples([{"x": np.zeros((4, 2))}] * 3, 12, "test")
    assert samples.first(5, specs).count == 8


@pytest.mark.parametrize("shape", [("N", 3, 32, 32), ("N", 32, 40, 1)])
def test_synthetic_images_are_standardised_and_smooth(shape):
    specs = [spec("x", *shape)]
    samples = synthetic_samples(specs, sizes={"x": shape[1:]}, count=400, seed=0)
    array = np.concatenate([feed["x"] for feed in samples.feeds]).astype(np.float64)
    assert array.shape == (400, *shape[1:])
    assert abs(array.mean()) < 0.1
    assert np.abs(array.var(axis=0) - 1).max() < 0.5  # every pixel alike, also at the borders
    assert abs(array.var(axis=0).mean() - 1) < 0.08
    axis = 2
    near, far = np.diff(array, axis=axis), array - np.roll(array, 16, axis=axis)
    assert 0.1 < np.mean(near**2) < 0.6 * np.mean(far**2)  # white noise: equal
    assert "smoothed noise" in samples.source


def test_synthetic_colours_move_together():
    samples = synthetic_samples(IMAGE, sizes={"x": (3, 16, 16)} | {"x": (3, 4, 4)}, count=200, seed=0)
    array = np.concatenate([feed["x"] for feed in samples.feeds])
    assert 0.7 < np.corrcoef(array[:, 0].ravel(), array[:, 1].ravel())[0, 1] < 0.9


def test_synthetic_kinds_and_ranges():
    specs = [
        spec("f", "N", 64, dtype="float16"),
        spec("b", "N", 9, dtype="bool"),
        spec("i", "N", 50, dtype="int64"),
        spec("t", "N", 50, dtype="int32"),
        spec("u", "N", 8, 8, 3, dtype="uint8"),
        spec("rate", dtype="int64"),
    ]
    sizes = {"f": (64,), "b": (9,), "i": (50,), "t": (7, 50), "u": (8, 8, 3)}  # t: with its batch axis
    samples = synthetic_samples(specs, sizes=sizes, count=5, seed=1, int_ranges={"t": (5, 9)}, batch=4)
    assert [len(feed["f"]) for feed in samples.feeds] == [4, 1]
    feed = samples.feeds[0]
    assert {name: array.dtype for name, array in feed.items()} == {s.name: s.dtype for s in specs}
    assert feed["t"].shape == (4, 50)
    assert set(np.unique(feed["i"])) == {0, 1}
    assert set(np.unique(feed["t"])) == {5, 6, 7, 8}
    assert feed["u"].max() > 150 > 100 > feed["u"].min()
    assert feed["rate"].shape == ()


def test_synthetic_depends_on_the_seed_alone():
    first, again, other = (
        synthetic_samples(IMAGE, sizes={"x": (3, 4, 4)}, count=3, seed=seed).feeds[0]["x"] for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_synthetic_fills_fixed_batches_and_refuses_what_cannot_be():
    samples = synthetic_samples([spec("x", 4, 2)], sizes={"x": (4, 2)}, count=6, seed=0)
    assert (samples.count, [f["x"].shape for f in samples.feeds]) == (8, [(4, 2), (4, 2)])
    with pytest.raises(UsageError, match=r"--input-shapes x: \[5\] does not fit x float32 \[N, 2\]"):
        synthetic_samples([spec("x", "N", 2)], sizes={"x": (5,)}, count=1, seed=0)
    with pytest.raises(InputError, match="give --calibration-data"):
        synthetic_samples([spec("x", "N", dtype="O")], sizes={"x": (1,)}, count=1, seed=0)


@pytest.mark.parametrize("kind", ["bfloat16", "float8e4m3fn"])
def test_inputs_of_types_that_nobody_can_feed(kind):
    text = f"g ({kind}[N, 4] x) => (float[N, 4] y) {{ y = Cast <to = 1> (x) }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]> {text}')
    for call in (onnxslim_merge.analyse, onnxslim_merge.slim):
        with pytest.raises(UnsupportedError, match=f"input x is of {kind.upper()}, which .* export as float32"):
            call(model)


@pytest.mark.parametrize(("shape", "hinted"), [((1, 28, 28), True), ((128, 28, 28), False), ((28, 28, 1), False)])
def test_an_axis_of_samples_is_only_missed_where_the_others_fit(tmp_path, shape, hinted):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(InputError) as caught:
        load_samples(tmp_path / "a.npy", [InputSpec("x", np.dtype(np.float32), ("N", 1, 28, 28))])
    assert ("array[None] adds it" in str(caught.value)) == hinted
