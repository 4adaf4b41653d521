"""Image files with labels: a folder of class folders, or an index in CSV.

A class folder's label is its name's place among the network's class names where they are known; else the places of
the sorted names, as torchvision's `ImageFolder` counts. Where the two readings of a number differ (folder "10" sorts
before "2"), nothing is guessed.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.data.groups import groups_in
from edgeprune.data.pictures import PictureSource, need_pillow, pictures_in
from edgeprune.errors import DataError

if TYPE_CHECKING:
    from edgeprune.types import InputForm, ModelBundle, Role

_ROLES = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_PATHS = ("path", "file", "filename", "image")
_LABELS = ("label", "class", "target")


def open_folder(folder: Path, role: Role, model: ModelBundle | InputForm) -> PictureSource:
    """A folder of class folders, or one that holds such a folder named after the role."""
    need_pillow()
    inner = next((folder / name for name in _ROLES[role] if (folder / name).is_dir()), folder)
    names = sorted(entry.name for entry in inner.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{inner} has no class folders", hint="put the images of each class into a folder of its own")
    place = _places(names, model.classes, inner)
    paths: list[Path] = []
    labels: list[int] = []
    for name in names:
        found = pictures_in(inner / name)
        paths += found
        labels += [place[name]] * len(found)
    if not paths:
        raise DataError(f"{inner} holds no images", hint="known: .png, .jpg, .bmp, .tiff, .webp, .ppm, .pgm")
    return _source(paths, labels, model)


def open_index(path: Path, role: Role, model: ModelBundle | InputForm) -> PictureSource:
    """A CSV file with the columns `path` (relative to the file) and `label` (a number or a class name).

    A column `split` or `role`, where there is one, picks the rows of this role; a column `group` or `track` says which
    images belong together (`groups.py`).
    """
    need_pillow()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    columns = list(rows[0]) if rows else []
    where = _column(columns, _PATHS, path)
    what = _column(columns, _LABELS, path)
    split = next((name for name in columns if name in ("split", "role")), None)
    picked = [row for row in rows if split is None or row[split] in _ROLES[role]]
    if not picked:
        raise DataError(f"{path.name} has no rows for {role}")
    labels = [_label(row[what], model.classes, path, line) for line, row in enumerate(picked, 2)]
    paths = [path.parent / row[where] for row in picked]
    groups = groups_in(columns, lambda name: [row[name] or "" for row in picked], np.array(labels), path.name)
    missing = [item for item in paths if not item.is_file()]
    if missing:
        raise DataError(f"{len(missing)} images of {path.name} are not there", where=f"the first: {missing[0]}")
    return replace(_source(paths, labels, model), groups=groups)


def _source(paths: list[Path], labels: list[int], model: ModelBundle | InputForm) -> PictureSource:
    return PictureSource(tuple(paths), np.array(labels, dtype=np.int64), model.input_shape, model.preprocessing)


def _places(names: list[str], classes: tuple[str, ...], folder: Path) -> dict[str, int]:
    numbered = classes == tuple(map(str, range(len(classes))))
    if not numbered and set(names) <= set(classes):
        return {name: classes.index(name) for name in names}
    if all(name.isdecimal() for name in names):
        ascending = sorted(names, key=int)
        if ascending != names and numbered:
            word, number = next(pair for pair in zip(names, ascending, strict=True) if pair[0] != pair[1])
            raise DataError(
                f"the class folders of {folder} can be read in two orders",
                where=f"class {names.index(word)} is {word} when sorted as words, {number} when sorted as numbers",
                hint="set model.classes to the folders' names, in the order of the logits",
            )
        if len(names) < len(classes):
            return {name: int(name) for name in names}
    if len(names) != len(classes):
        raise DataError(
            f"{folder} has {len(names)} class folders, the network has {len(classes)} classes",
            hint="set model.classes to the folders' names, in the order of the logits",
        )
    return {name: index for index, name in enumerate(names)}


def _column(columns: list[str], known: tuple[str, ...], path: Path) -> str:
    for name in known:
        if name in columns:
            return name
    raise DataError(
        f"{path.name} has no column {known[0]}",
        where=f"its first line: {', '.join(map(str, columns)) or 'nothing'}",
        hint="the first line names the columns: path,label",
    )


def _label(word: str | None, classes: tuple[str, ...], path: Path, line: int) -> int:
    word = (word or "").strip()
    if word in classes:
        return classes.index(word)
    if word.isdecimal():
        return int(word)
    raise DataError(f"line {line} of {path.name}: {word or 'no label'} is not a class", hint="set model.classes")
