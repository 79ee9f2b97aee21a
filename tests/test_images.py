"""Images as calibration data: every pixel arrives as documented, and what does not fit is said in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_tools import CNN, Cli, cli, one_line, saved
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import onnxslim_merge
from onnxslim_merge.api import make_settings
from onnxslim_merge.errors import InputError, MissingExtraError, SlimError, UsageError
from onnxslim_merge.preprocessing import Preprocessing
from onnxslim_merge.samples import InputSpec, Samples, find_files, is_float, load_images

__all__ = ["cli"]  # a fixture
FIRST, LAST = ("N", 3, 5, 6), ("N", 5, 6, 3)
COLOUR = (10, 100, 200)


def spec(*shape: Any, dtype: str = "float32") -> InputSpec:
    return InputSpec("x", np.dtype(dtype), shape)


def save(path: Path, colour: Any = COLOUR, size: tuple[int, int] = (6, 5), mode: str = "RGB", **options: Any) -> Path:
    """An image of one colour; `size` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def load(path: Path, *specs: InputSpec, sizes: tuple[int, ...] | None = None, batch: int = 64, **how: Any) -> Samples:
    """The samples; open sizes are those of `sizes`."""
    size = sizes or tuple(n if isinstance(n, int) else 2 for n in specs[0].shape)
    settings = make_settings(calibration_data=path, **how)
    return load_images(find_files(path), specs, sizes={specs[0].name: size}, how=settings.preprocessing, batch=batch)


def only(path: Path, *specs: InputSpec, **options: Any) -> np.ndarray:
    """The one sample of one batch, in float64."""
    (feed,) = load(path, *specs, **options).feeds
    (sample,) = feed["x"]
    assert feed["x"].flags.c_contiguous
    return sample.astype(np.float64)


# values

number = st.floats(-4, 4, width=32)
divisor = st.floats(0.125, 8, width=32) | st.floats(-8, -0.125, width=32)


@given(data=st.data(), last=st.booleans(), channels=st.sampled_from([1, 3, 4]), bgr=st.booleans())
def test_one_colour_becomes_exactly_the_formula(tmp_path_factory, data, last, channels, bgr):
    several = st.lists(number, min_size=channels, max_size=channels) | st.lists(number, min_size=1, max_size=1)
    mean, scale = data.draw(several), data.draw(divisor)
    std = data.draw(st.lists(divisor, min_size=1, max_size=1) | st.lists(divisor, min_size=channels, max_size=channels))
    colour = tuple(data.draw(st.lists(st.integers(0, 255), min_size=channels, max_size=channels)))
    colour = (*colour[:3], 255) if channels == 4 else colour  # Pillow weighs colours by their opacity in resizing
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    mode, bgr = {1: "L", 3: "RGB", 4: "RGBA"}[channels], bgr and channels > 1
    path = save(tmp_path_factory.mktemp("one") / "a.png", colour if channels > 1 else colour[0], size, mode)
    shape = ("N", 5, 7, channels) if last else ("N", channels, 5, 7)
    order = {"channel_order": "bgr"} if bgr else {}
    found = only(path, spec(*shape), mean=mean, std=std, scale=scale, **order)
    pixel = np.array([colour[i] for i in (2, 1, 0, 3)[:channels]] if bgr else colour, np.float64)
    expected = ((pixel * scale - np.array(mean)) / np.array(std)).astype(np.float32)
    expected = np.broadcast_to(expected, (5, 7, channels))
    np.testing.assert_array_equal(found, expected if last else expected.transpose(2, 0, 1))


@given(pixels=st.integers(0, 2**32 - 1))
def test_every_pixel_lands_in_its_place(tmp_path_factory, pixels):
    array = np.random.default_rng(pixels).integers(0, 256, (5, 6, 3), np.uint8)
    path = tmp_path_factory.mktemp("one") / "a.png"
    Image.fromarray(array).save(path)
    np.testing.assert_array_equal(only(path, spec(*LAST), scale=1), array)
    np.testing.assert_array_equal(only(path, spec(*FIRST), scale=1), array.transpose(2, 0, 1))
    np.testing.assert_array_equal(only(path, spec(*LAST, dtype="uint8"), channel_order="bgr"), array[..., ::-1])
    np.testing.assert_array_equal(only(path, spec(*LAST, dtype="int8"), mean=128), array.astype(int) - 128)


def test_defaults_and_what_is_said_of_them(tmp_path: Path):
    save(tmp_path / "a.png")
    samples = load(tmp_path, spec(*FIRST))
    assert samples.feeds[0]["x"][0, :, 0, 0] == pytest.approx(np.array(COLOUR) / 255)
    said = "rgb 6x5, pixel / 255, as no --mean, --std or --scale is given"
    assert samples.source == f"{tmp_path} ({said})"
    for dtype in ("uint8", "int32", "float16", "float64"):
        samples = load(tmp_path, spec(*FIRST, dtype=dtype))
        assert samples.feeds[0]["x"].dtype == dtype
        assert ("rgb 6x5, pixel)" in samples.source) == (dtype in ("uint8", "int32"))
    samples = load(tmp_path, spec(*FIRST), mean="0.485,0.456,0.406", std="0.229,0.224,0.225", channel_order="bgr")
    assert "bgr 6x5, (pixel / 255 - 0.485,0.456,0.406) / 0.229,0.224,0.225)" in samples.source
    assert "grey 6x5, (pixel * 0.5 - 2) / -4)" in load(tmp_path, spec("N", 1, 5, 6), mean=2, std=-4, scale=0.5).source


@pytest.mark.parametrize("size", [(6, 5), (60, 50), (40, 60), (3, 2), (300, 40)], ids=str)
def test_the_middle_stays_and_covers_the_frame(tmp_path: Path, size: tuple[int, int]):
    """Black bars at both ends of the longer side are cut off; nothing is padded."""
    width, height = size
    scale = min(width / 6, height / 5)
    left, top = int((width - 6 * scale) / 2), int((height - 5 * scale) / 2)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (left, top, width - left, height - top))
    image.save(tmp_path / "a.png")
    assert only(tmp_path, spec(*FIRST)).min() > 0.85  # the filter looks a little beyond the edge


def test_shrinking_averages(tmp_path: Path):
    board = (np.indices((80, 120)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert only(tmp_path, spec("N", 1, 5, 6), scale=1) == pytest.approx(127.5, abs=3)


def test_exif_says_what_is_up(tmp_path: Path):
    image, exif = Image.new("RGB", (5, 6), "white"), Image.Exif()
    image.paste("red", (0, 0, 3, 6))  # the left half, which is the upper one after a quarter turn
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    found = only(tmp_path, spec(*LAST), scale=1)
    assert found[0, 0].tolist() == found[0, 5].tolist() == [255, 0, 0]
    assert found[4, 0].tolist() == found[4, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (*COLOUR, 0), COLOUR),
        ("LA", (90, 10), (90, 90, 90)),
        ("P", 0, COLOUR),
    ],
)
def test_kinds_of_pixels(tmp_path: Path, mode: str, colour: Any, expected: tuple[int, ...]):
    image = Image.new(mode, (6, 5), colour)
    if mode == "P":
        image.putpalette(COLOUR)
    image.save(tmp_path / "a.png", **({"transparency": b"\x10"} if mode == "P" else {}))
    assert only(tmp_path, spec(*LAST), scale=1)[0, 0].tolist() == list(expected)


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "bmp", "webp", "tif", "tiff", "gif", "ppm"])
def test_kinds_of_files(tmp_path: Path, suffix: str):
    save(tmp_path / f"a.{suffix}")
    assert only(tmp_path, spec(*LAST), scale=1)[0, 0] == pytest.approx(np.array(COLOUR), abs=4)


def test_first_frame_of_an_animation(tmp_path: Path):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert only(tmp_path, spec(*LAST), scale=1)[0, 0].tolist() == [255, 0, 0]


# layout and sizes


def test_layout_of_the_model_or_as_given(tmp_path: Path):
    save(tmp_path / "a.png")
    ambiguous = spec("N", 3, 3, 3)
    with pytest.raises(UsageError, match="axis 1 or 3; say where with --layout nchw or --layout nhwc"):
        load(tmp_path, ambiguous)
    first, last = (only(tmp_path, ambiguous, layout=layout, scale=1) for layout in ("nchw", "nhwc"))
    assert first[:, 0, 0].tolist() == last[0, 0].tolist() == list(COLOUR)
    assert only(tmp_path, spec("N", 3, "H", "W"), sizes=(2, 3, 4, 3)).shape == (3, 4, 3)  # of two, the fixed one
    assert only(tmp_path, spec("N", "C", "H", "W"), sizes=(2, 8, 9, 3)).shape == (8, 9, 3)
    assert only(tmp_path, spec("N", "C", "H", "W"), sizes=(2, 1, 8, 9)).shape == (1, 8, 9)


NO_FIT = {
    "layout": (spec(*FIRST), {"layout": "nhwc"}, UsageError, "has 6 channels then"),
    "grey bgr": (spec("N", 1, 5, 6), {"channel_order": "bgr"}, UsageError, "has one channel; leave the option out"),
    "many channels": (spec("N", 12, 8, 8), {}, InputError, "1, 3 or 4 channels of an image"),
    "rank": (spec("N", 3), {}, InputError, "no batch of images"),
    "kind": (spec(*FIRST, dtype="bool"), {}, InputError, "no batch of images"),
    "two means": (spec(*FIRST), {"mean": (0.5, 0.5)}, UsageError, "--mean 0.5,0.5: give one number, or 3"),
    "two stds": (spec(*FIRST), {"std": (0.5, 0.25)}, UsageError, "--std 0.5,0.25: give one number, or 3"),
    "means of 0..255": (spec(*FIRST), {"mean": 123.7}, UsageError, "add --scale 1 if they are for 0..255"),
    "floats": (spec(*FIRST, dtype="uint8"), {"scale": "1/255"}, UsageError, "uint8 cannot hold: leave --mean"),
    "signed": (spec(*FIRST, dtype="int8"), {}, UsageError, "128, which the model's int8 cannot hold: --mean 128"),
    "negative": (spec(*FIRST, dtype="uint8"), {"mean": 1}, UsageError, "is -1 for a pixel of 0"),
    "overflow": (spec(*FIRST, dtype="float16"), {"scale": 1000}, UsageError, "float16 cannot hold"),
    "few": (spec(2, 3, 5, 6), {}, InputError, "1 samples, but the model's batch size is fixed at 2"),
}


@pytest.mark.parametrize("case", NO_FIT)
def test_what_does_not_fit_the_model(tmp_path: Path, case: str):
    save(tmp_path / "a.png")
    model, options, kind, text = NO_FIT[case]
    with pytest.raises(SlimError) as caught:
        load(tmp_path, model, **options)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_inputs_need_arrays(tmp_path: Path):
    save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"models with one input; save an \.npz with x float32"):
        load(tmp_path, spec(*FIRST), InputSpec("y", np.dtype("float32"), ("N",)))


@given(batch=st.integers(1, 5), count=st.integers(1, 12), fixed=st.booleans())
def test_batches(tmp_path_factory, batch, count, fixed):
    folder = tmp_path_factory.mktemp("several")
    for index in range(count):
        save(folder / f"{index:02}.png", (index, 0, 0))
    model = spec(batch if fixed else "N", 3, 5, 6, dtype="uint8")
    if fixed and count < batch:
        with pytest.raises(InputError, match=f"fixed at {batch}"):
            load(folder, model)
        return
    samples = load(folder, model, batch=batch)
    lengths, seen = zip(*((len(f["x"]), f["x"][:, 0, 0, 0].tolist()) for f in samples.feeds), strict=True)
    values = [value for part in seen for value in part]
    assert samples.count == sum(lengths) == (count // batch * batch if fixed else count)
    assert set(lengths[:-1]) <= {batch}
    assert lengths[-1] == batch or not fixed
    assert values == sorted(set(values))
    assert (f"{samples.count} of {count} images, drawn evenly" in samples.source) == (samples.count < count)


def test_too_many_images_are_drawn_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onnxslim_merge.samples.images.NUMBERS", 5 * 90 + 1)
    for index in range(20):
        save(tmp_path / f"class{index // 4}" / f"{index:02}.png", (index, 0, 0))
    samples = load(tmp_path, spec(*FIRST, dtype="uint8"))
    seen = samples.feeds[0]["x"][:, 0, 0, 0].tolist()
    assert sorted(seen) == [0, 4, 8, 12, 16]  # every class
    assert seen == load(tmp_path, spec(*FIRST, dtype="uint8")).feeds[0]["x"][:, 0, 0, 0].tolist()
    assert f"{tmp_path} (5 of 20 images, drawn evenly, rgb" in samples.source


# folders


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path):
    save(tmp_path / "b.png", (1, 0, 0))
    save(tmp_path / "a.PNG", (0, 0, 0))
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("none")
    save(tmp_path / "more" / "c.png")
    assert [file.name for file in find_files(tmp_path).files] == ["a.PNG", "b.png"]
    assert find_files(tmp_path / "b.png").images


def test_subfolders_are_classes(tmp_path: Path):
    for name in ("b/1.png", "b/0.png", "a/2.png", ".c/3.png", "d/e/4.png"):
        save(tmp_path / name)
    found = find_files(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in found.files] == ["a/2.png", "b/0.png", "b/1.png"]
    assert found.classes
    assert load(tmp_path, spec(*FIRST)).count == 3


def test_folders_that_are_of_no_use(tmp_path: Path):
    with pytest.raises(InputError, match=r"no \.npz or \.npy file and no image \(\.png, \.jpg.* nor do its subfolders"):
        find_files(tmp_path)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", np.ones(3))
    with pytest.raises(InputError, match="nor do its subfolders"):
        find_files(tmp_path)
    save(tmp_path / "a" / "x.png")
    for folder, names in ((tmp_path, r"a/x\.npy beside a/x\.png"), (tmp_path / "a", r": x\.npy beside x\.png")):
        with pytest.raises(InputError, match=f"{names}; put arrays and images into folders of their own"):
            find_files(folder)


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_broken_file(tmp_path: Path, content: bytes):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.png: not readable as an image .*: repair or remove it"):
        load(tmp_path, spec(*FIRST))


def test_truncated_and_missing_file(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"a\.jpg: not readable as an image"):
        load(tmp_path, spec(*FIRST))
    path.unlink()
    path.symlink_to("nowhere.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: not readable as an image"):
        load(tmp_path, spec(*FIRST))


def test_deep_pixels_would_be_cut_off(tmp_path: Path):
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"more than 8 bits in a pixel .*: convert it to 8 bits"):
        load(tmp_path, spec(*FIRST))


def test_very_large_image_is_read_or_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "a.png", size=(12, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns
    assert only(tmp_path, spec(*LAST), scale=1)[0, 0].tolist() == list(COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # and refuses
    with pytest.raises(InputError, match=r"a\.png: not readable as an image .*decompression bomb"):
        load(tmp_path, spec(*FIRST))


# options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"std": 0}, "--std 0: must not be 0"),
        ({"std": "0.5,0.0"}, "--std 0.0: must not be 0"),
        ({"scale": 0}, "--scale 0: must not be 0"),
        ({"scale": "1,2"}, "--scale '1,2': give one number"),
        ({"mean": "nan"}, "--mean nan: not a finite number"),
        ({"mean": [0.1, float("inf")]}, "--mean inf: not a finite number"),
        ({"mean": True}, "--mean True: not a finite number"),
        ({"mean": "0.5,"}, "--mean '': not a number"),
        ({"mean": "1/0"}, "--mean '1/0': not a number"),
        ({"layout": "chw"}, "--layout 'chw': choose one of auto, nchw, nhwc"),
        ({"channel_order": "grb"}, "--channel-order 'grb': choose one of rgb, bgr"),
    ],
    ids=str,
)
def test_bad_values(options: dict[str, Any], text: str):
    with pytest.raises(UsageError) as caught:
        make_settings(**options)
    assert text in str(caught.value)


def test_numbers_in_every_form():
    mean = np.array([0.5, 0.25], np.float32)
    assert make_settings(mean=mean).preprocessing == Preprocessing(mean=(0.5, 0.25))
    assert make_settings(mean="-1, 1/4", std=2, scale="1/255") == make_settings(
        mean=(-1, 0.25), std=(2,), scale=1 / 255
    )
    assert make_settings(mean=None, std=None, scale=None) == make_settings()


def test_integers_are_no_floats():
    for dtype in ("uint8", "int8", "int64"):
        assert not is_float(np.dtype(dtype))


# the command line

UINT8 = """u (uint8[N, 8, 8, 3] x) => (float[N, 5] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[5, 8] w2>
{ f = Cast <to = 1> (x)
  t = Transpose <perm = [0, 3, 1, 2]> (f)
  [conv1] a = Conv <pads = [1,1,1,1]> (t, w1, b1)
  r = Relu (a)
  p = GlobalAveragePool (r)
  q = Flatten (p)
  [head] y = Gemm <transB = 1> (q, w2) }"""


@pytest.fixture
def photos(cli: Cli) -> Path:
    """Forty noisy images of several sizes."""
    saved(cli.model, CNN)
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for index in range(40):
        size = (*rng.integers(6, 30, 2), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(f"photos/{index}.png")
    return Path("photos")


NORMAL = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]


@pytest.mark.parametrize("compensation", ["auto", "least-squares"])
def test_a_folder_of_images_on_the_command_line(cli: Cli, photos: Path, compensation: str):
    options = ["--calibration-data", photos, *NORMAL, "--compensation", compensation]
    out = cli.ok("in.onnx", "out.onnx", *options, "--report", "report.json", "--save-plan", "plan.json")
    assert "40 samples, photos (rgb 8x8," in " ".join(out.split())
    fidelity = json.loads(Path("report.json").read_text())["fidelity"]
    formula = "(pixel / 255 - 0.485,0.456,0.406) / 0.229,0.224,0.225"
    assert (fidelity["samples"], fidelity["source"]) == (40, f"photos (rgb 8x8, {formula})")
    assert "no least squares" not in out
    cli.ok("in.onnx", "again.onnx", "--plan", "plan.json")
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    mean, std = ([float(number) for number in text.split(",")] for text in NORMAL[1::2])
    result = onnxslim_merge.slim("in.onnx", calibration_data="photos", mean=mean, std=std, compensation=compensation)
    assert result.model is not None
    assert result.model.graph == onnx.load("out.onnx").graph


def test_preprocessing_reaches_the_fit(cli: Cli, photos: Path):
    models = []
    for options in ([], NORMAL, [*NORMAL, "--channel-order", "bgr"], ["--mean", "-1,0,1", "--scale", "1/127.5"]):
        cli.ok("in.onnx", "out.onnx", "--calibration-data", photos, "--compensation", "least-squares", *options)
        models.append(Path("out.onnx").read_bytes())
    assert len(set(models)) == 4


def test_integers_read_raw_pixels(cli: Cli, photos: Path):
    saved(cli.model, UINT8)
    out = cli.ok("in.onnx", "out.onnx", "--calibration-data", photos)
    assert "photos (rgb 8x8, pixel)" in " ".join(out.split())
    assert "uint8 cannot hold" in cli.refused(2, "in.onnx", "old.onnx", "--calibration-data", photos, *NORMAL)
    cli.ok("in.onnx", "--calibration-data", photos / "0.png")


def test_pixel_options_without_images(cli: Cli):
    np.savez("data.npz", x=np.ones((40, 6), np.float32))
    for data in ([], ["--calibration-data", "data.npz"]):
        code, _, err = cli.run("in.onnx", "--mean", "0.5", "--channel-order", "bgr", *data)
        assert code == 0
        text = "warning: --mean and --channel-order without effect where no images are given as --calibration-data"
        assert one_line(err) == text


def test_what_is_refused(cli: Cli, photos: Path):
    options = ["in.onnx", "old.onnx", "--calibration-data", photos]
    assert "--std 0" in cli.refused(2, *options, "--std", "0.5,0,0.5")
    assert "one for each channel" in cli.refused(2, *options, "--mean", "0.5,0.5")
    assert "--layout" in cli.refused(2, *options, "--layout", "nhwc")
    assert "no such" in cli.refused(3, "in.onnx", "old.onnx", "--calibration-data", "nowhere", "--mean", "0.5")
    assert "is the same file as" in cli.refused(2, *options, "--report", photos / "3.png")
    np.save("photos/x.npy", np.ones(3))
    assert "photos: x.npy beside 0.png; put" in cli.refused(3, *options)


def test_pillow_is_missing(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    text = cli.refused(2, "in.onnx", "old.onnx", "--calibration-data", photos)
    assert 'pip install "onnxslim-merge[images]"' in text
    with pytest.raises(MissingExtraError):
        load(photos, spec(*FIRST))
