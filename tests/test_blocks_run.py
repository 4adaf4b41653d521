"""A whole run that removes blocks, and the command that lists them: what a user sees."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command

from edgeprune import load
from edgeprune.config import ModelConfig
from edgeprune.records import PrunePlan, Report, read_record

CODE = """
import torch
from torch import nn


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class UnitNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.units = nn.Sequential(Unit(), Unit(), Unit(), Unit())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.units(self.stem(x)).mean((2, 3)))
"""
SETTINGS = """
[model]
arch = "units_of_a_test.py:UnitNet"
input_shape = [3, 8, 8]
[prune]
channel_multiple = 4
macs_ratio = 0.55
[recover]
recipe = "none"
[latency]
runtimes = ["onnxruntime"]
processes = 1
blocks = 2
block_ms = 2
[run]
out = "run"
torch_threads = 1
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "units_of_a_test.py").write_text(CODE)
    (tmp_path / "edgeprune.toml").write_text(SETTINGS)
    names: dict[str, object] = {"__name__": "units_of_a_test"}
    exec(compile(CODE, "code", "exec"), names)  # noqa: S102  # the text above
    torch.manual_seed(0)
    module = names["UnitNet"]()  # type: ignore[operator]
    with torch.no_grad():
        module.units[2].two.weight.mul_(0.1)
        module.units[0].two.weight.mul_(0.2)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "units_of_a_test", raising=False)  # another test's copy of the same file
    return tmp_path


def test_run_without_blocks_ships_and_reports_them_as_removed(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--scope", "blocks")
    assert said.code == 0, said.err
    plan = read_record(PrunePlan, project / "run" / "plan.json")
    assert (plan.removed_blocks, plan.removable_blocks) == (("units.2", "units.0"), 4)
    assert (plan.scope, plan.block_criterion, plan.removed_channels) == ("blocks", "magnitude", 0)
    report = read_record(Report, project / "run" / "report.json")
    layers = {layer.name: (layer.dense_channels, layer.channels, layer.macs) for layer in report.layers}
    assert layers["units.2.one"] == layers["units.2.two"] == (8, 0, 0)
    assert layers["units.1.one"][1] == 8
    assert sum(macs for *_, macs in layers.values()) == plan.macs
    html = (project / "run" / "report.html").read_text(encoding="utf-8")
    assert "8 → <b>removed</b>" in html
    assert "2 of 4 blocks (units.2, units.0, in this order), chosen by the criterion magnitude" in html
    markdown = (project / "run" / "report.md").read_text(encoding="utf-8")
    assert "`units.2`, `units.0`: chosen by magnitude" in markdown
    assert "without units.2" in " ".join(said.out.split())
    settings = ModelConfig(arch=str(project / "units_of_a_test.py:UnitNet"))
    pruned = load(project / "run" / "pruned.pt", settings).module
    assert [type(unit).__name__ for unit in pruned.units] == ["Identity", "Unit", "Identity", "Unit"]


def test_inspect_lists_blocks_and_what_would_go(project: Path, edgeprune: Command) -> None:
    found = json.loads(edgeprune("inspect", "model.pt", "--scope", "blocks", "--json").out)
    assert {block["name"]: block["removed"] for block in found["blocks"]} == {
        "units.0": True,
        "units.1": False,
        "units.2": True,
        "units.3": False,
    }
    assert found["kept_macs"] == found["macs"] - sum(b["macs"] for b in found["blocks"] if b["removed"])
    table = edgeprune("inspect", "model.pt", "--ignore", "units.1").out
    assert "3 blocks proved" in table
    assert "not offered as a block, because" in table
    assert "a stage: its blocks are offered one by one" in table


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--scope", "everything"), "must be one of channels, blocks, both"),
        (("--scope", "both", "--iterations", "2"), "prunes in one step"),
        (("--scope", "blocks", "--min-width", "4"), "prunes no channels: leave out min_width"),
        (("--scope", "blocks", "--block-criterion", "cak"), "did you mean cka?"),
        (("--scope", "blocks", "--block-criterion", "taylor"), "needs training data"),
    ],
)
def test_settings_that_make_no_sense_are_told(
    flags: tuple[str, ...], said: str, project: Path, edgeprune: Command
) -> None:
    found = edgeprune("compress", "model.pt", *flags)
    assert found.code == 2
    assert said in " ".join(found.err.split())
