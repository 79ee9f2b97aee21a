"""Samples from files: npz keyed by input name, npy for a model with one input, or a folder of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxslim_merge.errors import InputError
from onnxslim_merge.files import shown
from onnxslim_merge.samples.folders import find_files
from onnxslim_merge.samples.specs import Batching, Feed, InputSpec, Samples, is_float


def load_samples(path: Path, specs: Sequence[InputSpec], *, batch: int = 64) -> Samples:
    """Read calibration inputs and cut them into batches.

    An npz holds one array for each input name; an npy the only input; a folder holds such files, taken in sorted
    order, each one batch or several. Batches have at most `batch` samples, or exactly the model's fixed batch size;
    then whole files are joined first where they fit together, what is left over is dropped, and `source` says so.
    Float kinds are converted among each other, integers where no value changes. Raises InputError, naming the file
    and what the model expects, for anything else that does not fit, NaN, infinity and empty files.
    """
    files = find_files(path).files
    batching = Batching.of(specs)
    feeds = [_checked(shown(file), _read(file, specs), specs, batching) for file in files]
    total = sum(batching.size_of(feed) for feed in feeds)
    if batching.fixed is not None:
        feeds = _joined(feeds, batching)
    pieces = [piece for feed in feeds for piece in batching.cut(feed, batch)]
    count = sum(batching.size_of(piece) for piece in pieces)
    if not pieces:
        raise InputError(
            f"{shown(path)}: {total} samples, but the model's batch size is fixed at {batching.fixed}:"
            " give at least that many"
        )
    source = shown(path)
    if count < total:
        source += f" (the last {total - count} of {total} samples do not fill a batch of {batching.fixed}: dropped)"
    return Samples(pieces, count, source)


def _read(file: Path, specs: Sequence[InputSpec]) -> Feed:
    """The arrays of one file by input name; names are checked, nothing else."""
    try:
        with file.open("rb") as stream:  # np.load itself leaves a damaged archive open
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                arrays = {name: loaded[name] for name in loaded.files}
            else:
                arrays = loaded
    except Exception as error:  # numpy, zipfile and the OS raise a dozen classes for a damaged file
        why = " ".join(str(error).split())[:200]
        if "allow_pickle" in why:  # advice for programmers, and not for files from anywhere
            objects = why.startswith("Object arrays")
            why = "it holds Python objects; save plain arrays of numbers" if objects else "it is neither .npy nor .npz"
        raise InputError(f"{shown(file)}: not readable as NumPy data ({why})") from None
    if isinstance(arrays, np.ndarray):
        if len(specs) != 1:
            raise InputError(
                f"{shown(file)}: one array fits models with one input; give them by name (.npz), {_expected(specs)}"
            )
        return {specs[0].name: arrays}
    wanted = {spec.name for spec in specs}
    problems = [f"no array {name!r}" for name in sorted(wanted - arrays.keys())]
    problems += [f"{name!r} is no input" for name in sorted(arrays.keys() - wanted)]
    if problems:
        raise InputError(f"{shown(file)}: {', '.join(problems)}; expected {_expected(specs)}")
    return {spec.name: arrays[spec.name] for spec in specs}


def _checked(file: str, feed: Feed, specs: Sequence[InputSpec], batching: Batching) -> Feed:
    """The feed in the model's dtypes; raises InputError where a shape, kind, value or length does not fit."""
    symbols: dict[str, tuple[int, str]] = {}
    lengths: dict[str, int] = {}
    for spec in specs:
        array = feed[spec.name]
        if array.size == 0:
            raise InputError(f"{file}: {spec.name} is empty (shape {list(array.shape)}); expected {spec}")
        _check_shape(file, array, spec, batched=spec.name in batching.names)
        for axis, dim in enumerate(spec.shape):
            if axis == 0 and spec.name in batching.names:
                lengths[spec.name] = array.shape[0]
            elif isinstance(dim, str):
                size, first = symbols.setdefault(dim, (array.shape[axis], spec.name))
                if size != array.shape[axis]:
                    raise InputError(
                        f"{file}: {dim} is {size} in {first} but {array.shape[axis]} in {spec.name}; "
                        f"expected {_expected(specs)}"
                    )
        feed[spec.name] = _converted(file, array, spec)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{file}: unequal numbers of samples ({found}): every input needs the same number")
    return feed


def _check_shape(file: str, array: np.ndarray, spec: InputSpec, *, batched: bool) -> None:
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size or (axis == 0 and batched)
        for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        hint = ""
        whole = all(not isinstance(dim, int) or dim == n for dim, n in zip(spec.shape[1:], array.shape, strict=False))
        if batched and array.ndim == len(spec.shape) - 1 and whole:
            hint = " (the first axis counts the samples: array[None] adds it)"
        raise InputError(f"{file}: {spec.name} has shape {list(array.shape)}, but the model expects {spec}{hint}")


def _converted(file: str, array: np.ndarray, spec: InputSpec) -> np.ndarray:
    """`array` in the dtype of `spec`: floats among each other, integers where the values survive."""
    if spec.dtype.kind == "O":
        if array.dtype.kind not in "US":
            raise InputError(f"{file}: {spec.name} is {array.dtype}, but the model expects {spec}")
        return array.astype(object)
    both_float = is_float(array.dtype) and is_float(spec.dtype)
    both_int = array.dtype.kind in "iu" and spec.dtype.kind in "iu"
    if array.dtype != spec.dtype and not both_float and not both_int:
        hint = " (scale it as the model was trained)" if is_float(spec.dtype) and array.dtype.kind in "iu" else ""
        raise InputError(f"{file}: {spec.name} is {array.dtype}, but the model expects {spec}: convert it{hint}")
    if both_float and not np.isfinite(array).all():
        raise InputError(f"{file}: {spec.name} holds NaN or infinity: remove those samples")
    if both_int and not np.array_equal(array, array.astype(spec.dtype)):
        raise InputError(f"{file}: {spec.name} holds values that {spec.dtype} cannot; the model expects {spec}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array.astype(spec.dtype, copy=False)).reshape(array.shape)
    if both_float and not np.isfinite(converted).all():
        raise InputError(f"{file}: {spec.name} holds values too large for {spec.dtype}; the model expects {spec}")
    return converted


def _joined(feeds: list[Feed], batching: Batching) -> list[Feed]:
    """One feed out of all, where the samples have one shape and the unbatched inputs are the same; else as they are."""
    first = feeds[0]
    if not all(_joinable(first, feed, batching) for feed in feeds):
        return feeds
    return [{n: np.concatenate([f[n] for f in feeds]) if n in batching.names else array for n, array in first.items()}]


def _joinable(first: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray], batching: Batching) -> bool:
    return all(
        feed[name].shape[1:] == array.shape[1:] if name in batching.names else np.array_equal(feed[name], array)
        for name, array in first.items()
    )


def _expected(specs: Sequence[InputSpec]) -> str:
    return "; ".join(str(spec) for spec in specs)
