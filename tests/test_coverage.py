"""The coverage benchmark's own promises, on networks that take no time: what it calls pruned has been pruned."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_networks import Chain, Lambda, bundle_of, randomized

from edgeprune.types import ModelBundle

PATH = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tried(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, note: Path, pruner: Any = None) -> dict[str, Any]:
    monkeypatch.setattr(coverage, "build", lambda name: bundle_of(randomized(Chain())))
    if pruner:
        monkeypatch.setitem(coverage.PRUNERS, "ours", pruner)
    coverage.attempt("chain", "ours", note, torch.get_num_threads())
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found


def test_the_default_list_has_49_networks(coverage: ModuleType) -> None:
    assert len({*coverage.TORCHVISION, *coverage.TIMM}) == 49


def test_a_network_that_can_be_pruned_passes_every_stage(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = tried(coverage, monkeypatch, tmp_path / "note.json")
    assert found["ok"], found["reason"]
    assert found["stage"] == "done"
    assert 0.2 < found["macs_removed"] < 0.8
    assert found["parity"] <= 1e-5
    assert found["groups"] == 2


def same(bundle: ModelBundle, result: Any) -> ModelBundle:
    return bundle


def narrower_output(bundle: ModelBundle, result: Any) -> ModelBundle:
    return bundle_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


def not_a_number(bundle: ModelBundle, result: Any) -> ModelBundle:
    return bundle_of(Lambda(lambda m, x: m.fc(x.mean((2, 3))) * torch.nan, fc=nn.Linear(3, 4)))


@pytest.mark.parametrize(
    ("pruner", "reason"),
    [(same, "nothing was removed"), (narrower_output, "logits of shape (2, 3)"), (not_a_number, "finite: False")],
)
def test_what_was_not_pruned_right_fails_with_its_reason(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pruner: Any, reason: str
) -> None:
    found = tried(coverage, monkeypatch, tmp_path / "note.json", pruner)
    assert not found["ok"]
    assert found["stage"] == "forward"
    assert reason in found["reason"]


def test_macs_are_those_of_convolutions_and_products(coverage: ModuleType) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(320, 4))
    assert coverage.macs(network, torch.rand(1, 3, 8, 8)) == 3 * 5 * 9 * 64 + 320 * 4


def test_logits_that_are_all_zero_are_no_parity(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def silent(bundle: ModelBundle, result: Any) -> ModelBundle:
        def forward(m: Lambda, x: Tensor) -> Tensor:
            logits: Tensor = m.fc(x.mean((2, 3))) * 0
            return logits

        return bundle_of(Lambda(forward, fc=nn.Linear(3, 4)))

    found = tried(coverage, monkeypatch, tmp_path / "note.json", silent)
    assert not found["ok"]
    assert found["stage"] == "parity"


def test_a_process_that_takes_too_long_is_ended(coverage: ModuleType) -> None:
    found = coverage.supervised("resnet18", "ours", 0.2, 1)
    assert not found["ok"]
    assert found["reason"] == "not done after 0.2 s"


def test_failures_are_listed_with_stage_and_reason(coverage: ModuleType) -> None:
    good = {"ok": True, "macs_removed": 0.5, "stage": "done", "reason": ""}
    bad = {"ok": False, "macs_removed": None, "stage": "forward", "reason": "wrong shape"}
    skipped = {"ok": False, "macs_removed": None, "stage": "build", "reason": "SkipError: timm cannot be imported"}
    text = coverage.report({"a": {"ours": good, "peer": bad}, "b": {"ours": skipped, "peer": skipped}})
    assert "edgeprune: 1 of 1, 1 of them with at least 40 %" in text
    assert "torch-pruning: 0 of 1" in text
    assert "a, torch-pruning, forward: wrong shape" in text
