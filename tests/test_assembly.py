"""A whole run of a network that few would bring: two inputs, code and values beside the configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import model_examples as examples
import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image

import edgeprune as package
from edgeprune.config import ModelConfig
from edgeprune.keys import model_key
from edgeprune.models import from_module
from edgeprune.records import Report, read_record

CODE = """
import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 16, 3), nn.Linear(2, 16), nn.Linear(16, 4)

    def forward(self, task, x):
        x = torch.relu(self.conv(x)) * torch.sigmoid(self.gate(task))[:, :, None, None]
        return self.head(x.mean((2, 3)))
"""
SETTINGS = """
[model]
arch = "code/held_network_of_a_test.py:Gated"
input_shape = [3, 8, 8]
held = "held.npz"
image_input = "x"
fit = "crop"
resize = 9
interpolation = "bicubic"
[data]
test = "pictures"
[prune]
channel_multiple = 4
[recover]
recipe = "none"
[latency]
runtimes = ["onnxruntime"]
processes = 1
blocks = 2
block_ms = 2
[attack]
eps = "8/255"
steps = 2
restarts = 1
[run]
out = "run"
torch_threads = 1
"""


def project(folder: Path) -> Path:
    """The network's code, weights, values, pictures and settings in `folder`; the folder."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "held_network_of_a_test.py").write_text(CODE)
    (folder / "edgeprune.toml").write_text(SETTINGS)
    np.savez(folder / "held.npz", task=np.array([0.5, -1.0]))
    names: dict[str, object] = {}
    exec(compile(CODE, "code", "exec"), names)  # noqa: S102  # the text above
    torch.manual_seed(0)
    torch.save(names["Gated"]().state_dict(), folder / "model.pt")  # type: ignore[operator]
    random = np.random.default_rng(0)
    for label in range(4):
        (folder / "pictures" / str(label)).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / str(label) / f"{number}.png")
    return folder


def test_a_run_from_another_folder_holds_the_second_input_and_says_so(
    tmp_path: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp_path / "project")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = edgeprune("compress", "../project/model.pt", "--config", "../project/edgeprune.toml")
    assert said.code == 0, said.err
    report = read_record(Report, folder / "run" / "report.json")
    assert (report.model.fit, report.model.resize, report.model.interpolation) == ("crop", 9, "bicubic")
    assert report.model.held == ("task",)
    assert "image files resized to 9 (bicubic), cropped at the centre; held at one value: task" in (
        (folder / "run" / "report.md").read_text()
    )
    assert all(parity.max_difference < 1e-5 for parity in report.parity)
    arch = str(folder / "code" / "held_network_of_a_test.py") + ":Gated"
    pruned = package.load(folder / "run" / "pruned.pt", ModelConfig(arch=arch))
    assert pruned.module.module.gate.out_features == 8  # type: ignore[union-attr]
    assert pruned.digest == report.artifact("compressed").parent_digest
    flags = ("--config", "../project/edgeprune.toml", "--accuracy", "--json")
    found = json.loads(edgeprune("measure", folder / "run" / "model.onnx", *flags).out)
    assert found["accuracy"] == report.accuracy[0].compressed.model_dump(mode="json")  # type: ignore[index]


def test_another_output_of_the_same_weights_is_another_network_to_a_rerun() -> None:
    module = examples.seeded(examples.Heads)
    bundles = [from_module(module, ModelConfig(input_shape=(3, 8, 8), output=output)) for output in ("logits", "aux")]
    keys = [model_key(bundle) for bundle in bundles]
    assert bundles[0].digest == bundles[1].digest
    assert {**keys[0], "classes": ()} != {**keys[1], "classes": ()}
