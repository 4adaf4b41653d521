"""`edgeprune attack --replay`: nothing of the evidence is believed, and what still falls is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

USAGE, NO_RESULT = 2, 3


@pytest.fixture
def found(project: Path, edgeprune: Command) -> dict[str, object]:
    """An attack on the compressed file that writes evidence.npz."""
    said = edgeprune("attack", "run/model.onnx", "--eps", "0.3", "--evidence", "evidence.npz", "--json")
    assert said.code == 0, said.err
    attacked: dict[str, object] = json.loads(said.out)["result"]
    return attacked


def replayed(edgeprune: Command, file: str, *more: str) -> dict[str, object]:
    said = edgeprune("attack", file, "--replay", "evidence.npz", "--json", *more)
    assert said.code == 0, said.err
    shown: dict[str, object] = json.loads(said.out)
    return shown


def test_the_attacked_file_falls_to_everything_again(
    project: Path, edgeprune: Command, found: dict[str, object]
) -> None:
    shown = replayed(edgeprune, "run/model.onnx")
    assert shown["fell"] == shown["claimed"] == found["fell"] != 0
    assert (shown["outside"], shown["robust"]) == (0, found["robust"])


def test_another_file_is_shown_what_was_found_on_the_first(
    project: Path, edgeprune: Command, found: dict[str, object]
) -> None:
    shown = replayed(edgeprune, "run/dense/model.onnx")
    assert shown["found_on"] == found["sha256"] != shown["sha256"]
    assert shown["fell"] <= shown["claimed"]  # type: ignore[operator]


def test_a_runs_evidence_is_replayed_on_the_file_it_was_found_on(project: Path, edgeprune: Command) -> None:
    said = edgeprune("attack", "run/dense/model.onnx", "--replay", "run/evidence.npz", "--json")
    assert said.code == 0, said.err
    shown = json.loads(said.out)
    assert shown["found_on"] == shown["sha256"]
    assert shown["fell"] == shown["claimed"]
    assert "still fall" in edgeprune("attack", "run/model.onnx", "--replay", "run/evidence.npz").out


def test_adversarials_outside_the_ball_count_for_nothing(
    project: Path, edgeprune: Command, found: dict[str, object]
) -> None:
    with np.load(project / "evidence.npz") as arrays:
        forged = dict(arrays)
    forged["file_adversarials"] = 1 - forged["file_adversarials"]
    np.savez(project / "evidence.npz", **forged)
    shown = replayed(edgeprune, "run/model.onnx")
    assert shown["fell"] == 0
    assert shown["robust"] == shown["clean"]


def test_evidence_about_other_images_is_refused(project: Path, edgeprune: Command, found: dict[str, object]) -> None:
    with np.load(project / "evidence.npz") as arrays:
        forged = dict(arrays)
    forged["ids"] = forged["ids"][:-1]
    for name in ("labels", "file_fell", "file_adversarials"):
        forged[name] = forged[name][:-1]
    np.savez(project / "evidence.npz", **forged)
    said = edgeprune("attack", "run/model.onnx", "--replay", "evidence.npz")
    assert said.code == NO_RESULT
    assert "found on other images" in said.err


def test_what_is_no_evidence_is_an_error(project: Path, edgeprune: Command) -> None:
    said = edgeprune("attack", "run/model.onnx", "--replay", "model.pt")
    assert said.code == NO_RESULT
    assert "no evidence of an attack" in said.err
