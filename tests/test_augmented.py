"""What is made of calibration images: mirror images and crops, at places that keep what is held out unseen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_least_squares import calibration
from textmodels import parse, weights

import onnxslim_merge
from onnxslim_merge.samples import InputSpec, augmented, augmenting, what_helps

LARGE = (3, 64, 80)


def spec(*shape, name="x", dtype=np.float32):
    return InputSpec(name, np.dtype(dtype), ("N", *shape))


def batches(count, *shape, many=8, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [{"x": rng.integers(0, 100, (count, *shape)).astype(dtype)} for _ in range(many)]


def test_masks_beside_images_stay_as_they_are():
    specs = [spec(3, 8, 8), InputSpec("mask", np.dtype(np.float32), ("N", 1, 1, 8))]
    feeds = [{"x": feed["x"], "mask": np.ones((1, 1, 1, 8), np.float32)} for feed in batches(1, 3, 8, 8)]
    assert len(augmented(feeds, specs, 8, augment="crops")) == 8


@pytest.mark.parametrize("shape", [(3, 8, 10), (10, 8, 3)])
def test_mirror_images_follow_each_cycle(shape):
    """Of the incomplete last one only the images themselves, as a mirror image would fall on another remainder."""
    feeds = batches(2, *shape, many=10)
    found = augmented(feeds, [spec(*shape)], 8, augment="mirror")
    assert len(found) == 18
    for i in range(8):
        np.testing.assert_array_equal(found[i]["x"], feeds[i]["x"])
        np.testing.assert_array_equal(found[8 + i]["x"], np.flip(feeds[i]["x"], 3 if shape[0] == 3 else 2))
    assert [found[16]["x"] is feeds[8]["x"], found[17]["x"] is feeds[9]["x"]] == [True, True]


@pytest.mark.parametrize(
    ("augment", "shape", "times"),
    [
        ("none", LARGE, 1),
        ("mirror", LARGE, 2),
        ("crops", LARGE, 4),
        ("crops", (3, 1, 32), 1),  # no image
        ("auto", LARGE, 4),
        ("auto", (3, 63, 80), 2),
        ("auto", (3, 1, 32), 1),
    ],
)
def test_how_many_there_are(augment, shape, times):
    assert len(augmented(batches(1, *shape), [spec(*shape)], 8, augment=augment)) == times * 8


@pytest.mark.parametrize(("count", "found"), [(31, "crops"), (32, "mirror")])
@pytest.mark.parametrize("asked", ["auto", "crops", "mirror", "none"])
def test_crops_are_for_few_photographs(asked, count, found):
    feeds = batches(count, *LARGE, dtype=np.uint8)
    assert what_helps(asked, feeds, [spec(*LARGE, dtype=np.uint8)]) == (found if asked == "auto" else asked)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("count", [31, 32])
def test_an_image_that_goes_with_all_samples_is_not_cropped(order, count):
    """Nor does it count as a sample."""
    specs = [InputSpec("all", np.dtype(np.float32), (1, *LARGE)), spec(*LARGE)][::order]
    feeds = [feed | {"all": feed["x"][:1]} for feed in batches(count, *LARGE)]
    assert {asked: what_helps(asked, feeds, specs) for asked in ("auto", "crops", "none")} == {
        "auto": "mirror", "crops": "mirror", "none": "none"
    }  # fmt: skip


def test_spectrograms_are_not_zoomed_unasked():
    feeds, specs = batches(1, 1, 64, 80), [spec(1, 64, 80)]
    assert [what_helps(asked, feeds, specs) for asked in ("auto", "crops")] == ["mirror", "crops"]


def test_the_smaller_of_two_images_decides():
    specs = [spec(*LARGE), spec(3, 32, 32, name="small")]
    feeds = [{"x": feed["x"], "small": feed["x"][:, :, :32, :32]} for feed in batches(1, *LARGE)]
    assert what_helps("auto", feeds, specs) == "mirror"


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_what_is_made_of_a_batch_stands_where_that_is_held_out(cycles, cycle, rest):
    """Images of one value each, which no crop changes."""
    feeds = [{"x": np.full((1, 1, 4, 4), i, np.float32)} for i in range(cycles * cycle + rest % cycle)]
    found = augmented(feeds, [spec(1, 4, 4)], cycle, augment="crops")
    assert sorted({int(feed["x"][0, 0, 0, 0]) for feed in found}) == [*range(len(feeds))]
    for place, feed in enumerate(found):
        assert np.ptp(feed["x"]) == 0
        assert int(feed["x"][0, 0, 0, 0]) % cycle == place % cycle


@pytest.mark.parametrize("axis", [1, 3])
def test_crops_show_a_part_enlarged(axis):
    """Of a ramp along the width from 0 to 1, a crop shows a ramp of 60% to 100% of the slope, either way round."""
    line = np.broadcast_to((np.arange(80) + 0.5) / 80, (50, 3, 64, 80)).astype(np.float32)
    feeds, shape = [{"x": np.ascontiguousarray(np.moveaxis(line, 1, axis))}], (LARGE if axis == 1 else (64, 80, 3))
    found = np.moveaxis(augmented(feeds, [spec(*shape)], 1, augment="crops")[2]["x"], axis, 1)
    assert found.shape == line.shape
    slopes = 80 * np.diff(found[:, 0, 0, 5:-5], axis=1)
    np.testing.assert_allclose(slopes, np.broadcast_to(slopes[:, :1], slopes.shape), atol=1e-3)
    sizes = np.abs(slopes[:, 0])
    assert 0.6 - 1e-3 < sizes.min() < 0.7
    assert 0.9 < sizes.max() < 1 + 1e-3
    assert 10 < (slopes[:, 0] > 0).sum() < 40
    middles = found.mean((1, 2, 3))
    assert middles.min() < 0.4
    assert middles.max() > 0.6
    assert np.ptp(found, axis=(1, 2)).max() < 1e-6  # all channels and rows are the same part


def test_whole_numbers_are_rounded():
    """Rounded down they would be half a step darker."""
    feeds = [{"x": np.random.default_rng(0).integers(0, 256, (8, *LARGE)).astype(np.uint8)}]
    whole, real = (
        augmented([{"x": feeds[0]["x"].astype(kind)}], [spec(*LARGE, dtype=kind)], 1, augment="crops")[2]["x"]
        for kind in (np.uint8, np.float32)
    )
    assert whole.dtype == np.uint8
    assert np.abs(whole - real).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.uint16, np.float16, np.float64])
def test_images_of_any_type_are_cropped(kind):
    feeds = batches(2, *LARGE, dtype=kind)
    found = augmented(feeds, [spec(*LARGE, dtype=kind)], 8, augment="crops")
    assert len(found) == 32
    assert found[16]["x"].dtype == kind
    assert np.array_equal(found[8]["x"], feeds[0]["x"][..., ::-1])


def test_all_inputs_show_the_same_part():
    x = batches(3, *LARGE, many=1)[0]["x"]
    feeds = [{"left": x, "right": x}]
    found = augmented(feeds, [spec(*LARGE, name="left"), spec(*LARGE, name="right")], 1, augment="crops")
    for feed in found:
        np.testing.assert_array_equal(feed["left"], feed["right"])


def test_a_part_that_is_the_whole_is_the_image(monkeypatch):
    monkeypatch.setattr("onnxslim_merge.samples.augmenting.SHARE", 1)
    feeds = batches(8, *LARGE, many=1)
    crops = augmented(feeds, [spec(*LARGE)], 1, augment="crops")[2]["x"]
    for crop, image in zip(crops, feeds[0]["x"], strict=True):
        nearest = min(np.abs(crop - other).max() for other in (image, image[..., ::-1]))
        assert nearest < 1e-4


@pytest.mark.parametrize(("channel", "size"), [(0, 64), (1, 80)], ids=["rows", "columns"])
def test_crops_lie_anywhere_inside(channel, size):
    """Of an image whose pixels are their own places: a part of size s has its middle s / 2 or more from borders."""
    rows, columns = np.mgrid[0:64, 0:80].astype(np.float32)
    feeds = [{"x": np.broadcast_to(np.stack([rows, columns, rows]), (60, 3, 64, 80)).copy()}]
    found = augmented(feeds, [spec(*LARGE)], 1, augment="crops")[2]["x"][:, channel]
    inner = found[:, 8:-8, 8:-8]  # where nothing is held at the border
    middle = (inner.max((1, 2)) + inner.min((1, 2)) + 1) / 2
    part = size * np.ptp(inner, axis=(1, 2)) / (size - 17)
    assert (part / 2 <= middle + 1e-2).all()
    assert (middle <= size - part / 2 + 1e-2).all()
    assert np.ptp(middle) > 0.15 * size


def test_crops_are_the_same_for_the_same_seed_and_differ_otherwise():
    feeds = batches(2, *LARGE)
    one, two, other = (augmented(feeds, [spec(*LARGE)], 8, augment="crops", seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[16]["x"], other[16]["x"])
    assert not np.array_equal(one[16]["x"], one[24]["x"])  # the second crop


PHOTOGRAPHS = """g (float[N, 3, 64, 64] x) => (float[N, 4, 16, 16] y) <float[6,3,4,4] w, float[6] b, float[4,6,1,1] v>
{ h = Conv <strides = [4, 4]> (x, w, b) r = Relu (h) y = Conv (r, v) }"""


def test_each_choice_gives_other_weights(tmp_path):
    """They are other samples, so other weights come out; whether they help is measured in decision 0013."""
    model = parse(PHOTOGRAPHS)
    data, _ = calibration(tmp_path, model, 16)
    options = {"ratio": 0.5, "calibration_data": data, "criterion": "consumer"}
    found = {
        augment: weights(onnxslim_merge.slim(model, augment=augment, **options).model)["v"]
        for augment in ("none", "mirror", "crops")
    }
    for one, other in (("none", "mirror"), ("mirror", "crops")):
        assert np.abs(found[one] - found[other]).max() > 1e-3 * np.abs(found[one]).max()


def test_each_crop_is_made_once_a_sweep(tmp_path, monkeypatch):
    """Not whenever some tensor of its batch is looked at: a deep network has many."""
    body = " ".join(f"h{i} = Conv (r{i - 1}, w{i}) r{i} = Relu (h{i})" for i in range(1, 7))
    inner = ", ".join(f"float[6,6,1,1] w{i}" for i in range(1, 7))
    model = parse(f"""g (float[N, 3, 64, 64] x) => (float[N, 4, 16, 16] y)
    <float[6,3,4,4] w, {inner}, float[4,6,1,1] v>
    {{ h = Conv <strides = [4, 4]> (x, w) r0 = Relu (h) {body} y = Conv (r6, v) }}""")
    made, crop = [], augmenting._cropped
    monkeypatch.setattr(augmenting, "_cropped", lambda *args: (made.append(1), crop(*args))[1])
    data, _ = calibration(tmp_path, model, 16)
    onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, augment="crops", dry_run=True)
    assert len(made) == 2 * 32  # sweeps, and batches of one: two crops of each of 16


def test_who_sees_no_crops_is_told(tmp_path):
    model = parse(
        "g (float[N, 8] x) => (float[N, 4] y) <float[8,6] w, float[6,4] v>"
        "{ h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"
    )
    data, _ = calibration(tmp_path, model, 32)
    for augment, said in (("crops", True), ("mirror", True), ("none", False), ("auto", False)):
        notes = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data, augment=augment, dry_run=True).report.notes
        assert any(f"--augment {augment} without effect" in note for note in notes) == said


@pytest.mark.parametrize("constant", [True, False])
def test_samples_that_are_all_the_same_are_said(tmp_path, constant):
    model = parse(PHOTOGRAPHS)
    data, _ = calibration(tmp_path, model, 16)
    if constant:
        np.save(data := tmp_path / "constant.npy", np.full((16, 3, 64, 64), 0.5, np.float32))
    notes = onnxslim_merge.slim(model, ratio=0.5, calibration_data=data).report.notes
    assert any("all samples given are the same" in note for note in notes) == constant


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ("mirror", "fitted to mirror images, too"),
        ("crops", "fitted to mirror images and crops, too"),
        ("auto", "fitted to mirror images and crops, too"),
        ("none", None),
    ],
)
def test_images_that_count_besides_are_said(tmp_path, augment, said):
    data, _ = calibration(tmp_path, parse(PHOTOGRAPHS), 16)
    result = onnxslim_merge.slim(parse(PHOTOGRAPHS), calibration_data=data, augment=augment, dry_run=True)
    found = [note for note in result.report.notes if "layers are fitted to" in note]
    assert [said in note for note in found] == ([] if said is None else [True])
