"""Which files calibration data consists of: NumPy arrays or images, one file or a folder of one kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from onnxslim_merge.errors import InputError

ARRAYS = (".npz", ".npy")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


@dataclass(frozen=True, slots=True)
class Found:
    """The files at `path`, sorted. images: of which kind they are; classes: they lie in subfolders."""

    path: Path
    files: list[Path]
    images: bool
    classes: bool = False


def find_files(path: Path) -> Found:
    """The calibration files at `path`, a file or a folder; hidden files are none.

    Subfolders (of one level, all files of all of them) count only where the folder itself holds neither arrays nor
    images, and only if they hold images. Raises InputError if there is nothing of use, or arrays beside images.
    """
    if not path.exists():
        raise InputError(f"{path}: no such calibration file or folder")
    if not path.is_dir():
        if not _is(path, ARRAYS + IMAGES):
            raise InputError(
                f"{path}: calibration data must be .npz, .npy, an image ({', '.join(IMAGES)}), or a folder of them"
            )
        return Found(path, [path], _is(path, IMAGES))
    inside, folders = _listed(path)
    classes = not inside
    if classes:
        inside = [file for folder in folders for file in _listed(folder)[0]]
    arrays, images = ([file for file in inside if _is(file, kind)] for kind in (ARRAYS, IMAGES))
    if arrays and images:
        raise InputError(
            f"{path}: {arrays[0].relative_to(path)} beside {images[0].relative_to(path)}; put arrays and images into"
            " folders of their own"
        )
    if not images and (classes or not arrays):
        raise InputError(
            f"{path}: the folder holds no .npz or .npy file and no image ({', '.join(IMAGES)}), nor do its subfolders"
            " hold images"
        )
    return Found(path, images or arrays, bool(images), classes)


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Arrays and images, and subfolders; sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    files = [Path(folder, name) for name, is_folder in found if not is_folder]
    return [p for p in files if _is(p, ARRAYS + IMAGES)], [Path(folder, name) for name, is_folder in found if is_folder]


def _is(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes
