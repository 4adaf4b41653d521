"""Pictures of any size under an exported file: `edgeprune measure` fits them as the settings declare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from edgeprune.export.onnx import export_onnx
from PIL import Image
from torch import nn

from edgeprune.config import ModelConfig
from edgeprune.models import from_module

SHAPE = (3, 8, 8)
FAST = ("--timing-processes", "1", "--timing-blocks", "2", "--timing-block-ms", "2", "-c", "/dev/null")


class Quadrants(nn.Module):
    """Class k where quadrant k is the brightest."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 4).mean(1).flatten(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quadrants as model.onnx, and pictures: as class folders, and as one folder with an index.

    Squashed, each picture is of its class. Its centre is of the class after that, at any scale that keeps its shape.
    """
    place = tmp_path_factory.mktemp("measured")
    export_onnx(from_module(Quadrants(), ModelConfig(input_shape=SHAPE)), place / "model.onnx")
    rows = ["path,label"]
    for label in range(4):
        (place / "folders" / str(label)).mkdir(parents=True)
        for number, height in enumerate((16, 24, 40)):
            name = f"folders/{label}/{number}.png"
            Image.fromarray(picture(label, height)).save(place / name)
            rows.append(f"{name},{label}")
    (place / "index.csv").write_text("\n".join(rows) + "\n")
    return place


def picture(label: int, height: int) -> np.ndarray:
    """Three times as wide as high; the outer thirds say `label`, the middle one the next class, less brightly."""
    pixels = np.zeros((height, 3 * height, 3), np.uint8)
    row, column = divmod(label, 2)
    half = height // 2
    pixels[row * half : (row + 1) * half, column * 2 * height : (column * 2 + 1) * height] = 250
    row, column = divmod((label + 1) % 4, 2)
    pixels[row * half : (row + 1) * half, height + column * half : height + (column + 1) * half] = 120
    return pixels


@pytest.mark.parametrize("data", ["folders", "index.csv"])
def test_measure_fits_pictures_of_any_size_as_declared(data: str, exported: Path, edgeprune: Command) -> None:
    right = {}
    for way in (("--fit", "squash"), ("--fit", "crop", "--resize", "8")):
        said = edgeprune(
            "measure", exported / "model.onnx", "--accuracy", "--test", exported / data, *way, *FAST, "--json"
        )
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert found["inputs"] == "real"
        right[way[1]] = found["accuracy"]["count"], found["accuracy"]["total"], found["samples_digest"]
    assert right["squash"][:2] == (12, 12)
    assert right["crop"][:2] == (0, 12)
    assert right["squash"][2] != right["crop"][2]


def test_measure_says_what_is_missing_for_pictures_of_another_size(exported: Path, edgeprune: Command) -> None:
    said = edgeprune("measure", exported / "model.onnx", "--accuracy", "--test", exported / "folders", *FAST)
    assert said.code == 3
    assert "48x16, the network takes 8x8" in said.err
    assert "--fit squash" in said.err


def test_a_configuration_file_declares_it_as_well(
    exported: Path, edgeprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'[model]\nfit = "squash"\ninterpolation = "bicubic"\n[data]\ntest = "{exported}/folders"\n'
    text += "[latency]\nprocesses = 1\nblocks = 2\nblock_ms = 2\n"
    (tmp_path / "edgeprune.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = json.loads(edgeprune("measure", exported / "model.onnx", "--accuracy", "--json").out)
    assert found["accuracy"]["count"] == 12
