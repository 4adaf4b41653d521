"""`edgeprune attack` on files alone: ours, foreign ones, and IRs; and what a run says of its gradients."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from conftest import Command
from onnx import TensorProto, helper
from twin_examples import node

from edgeprune.robustness.twin import table

INCONCLUSIVE = 4


def foreign(path: Path) -> Path:
    """The trained network as another tool might write it: one image at a time, channels last, normalised outside."""
    network = tiny.trained()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False, opset_version=11)
    model = onnx.load(path)
    inner = model.graph.input[0].name
    model.graph.node.insert(0, node("Transpose", "pixels", inner, perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 8, 8, 3]))
    onnx.save(model, path)
    return path


def result(edgeprune: Command, *arguments: str) -> dict[str, object]:
    said = edgeprune("attack", *arguments, "--json")
    assert said.code == 0, said.err
    found: dict[str, object] = json.loads(said.out)["result"]
    return found


def test_foreign_file_falls_as_our_own_does(project: Path, edgeprune: Command) -> None:
    """The same weights: the same images stand, whatever the layout and the place of the normalisation."""
    path = foreign(project / "foreign.onnx")
    ours, theirs = (result(edgeprune, name) for name in ("run/dense/model.onnx", path.name))
    for key in ("clean", "robust", "fell"):
        assert theirs[key] == ours[key]
    assert str(theirs["gradient_source"]).startswith("twin of the file (parity ")
    assert theirs["sha256"] != ours["sha256"]


def test_source_of_the_gradients_is_printed(project: Path, edgeprune: Command) -> None:
    said = edgeprune("attack", "run/model.onnx")
    assert "gradients from the twin of the file (parity " in said.out
    said = edgeprune("attack", "run/model.onnx", "--gradients", "run/pruned.pt")
    assert "gradients from the torch module that was exported" in said.out


def test_file_alone_is_enough(
    project: Path, edgeprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("run/model.onnx", "test.npz"):
        shutil.copy(project / name, alone)
    monkeypatch.chdir(alone)
    found = result(edgeprune, "model.onnx", "--test", "test.npz", "--eps", "8/255", "--attack-samples", "24")
    assert found["robust"]["total"] == 24  # type: ignore[index]


def test_ir_takes_its_gradients_from_the_onnx_file_beside_it(project: Path, edgeprune: Command) -> None:
    found = result(edgeprune, "run/model.xml")
    assert str(found["gradient_source"]).startswith("twin of the ONNX file beside it (parity ")
    assert found["robust"] == result(edgeprune, "run/model.onnx")["robust"]


def test_ir_alone_is_attacked_through_its_own_graph(project: Path, edgeprune: Command) -> None:
    """The same network in another format: the same images stand."""
    beside = result(edgeprune, "run/model.xml")
    (project / "run" / "model.onnx").unlink()
    alone = result(edgeprune, "run/model.xml")
    assert str(alone["gradient_source"]).startswith("twin of the file (parity ")
    for key in ("clean", "robust", "fell"):
        assert alone[key] == beside[key]


def test_ir_beside_another_networks_onnx_takes_its_own_graph(project: Path, edgeprune: Command) -> None:
    shutil.copy(project / "run" / "dense" / "model.onnx", project / "run" / "model.onnx")
    assert str(result(edgeprune, "run/model.xml")["gradient_source"]).startswith("twin of the file (parity ")


def test_operator_without_a_rule_is_named_and_only_asked(project: Path, edgeprune: Command) -> None:
    """Without gradients the runtime alone is asked: graded lower, and never conclusive."""
    path = foreign(project / "foreign.onnx")
    model = onnx.load(path)
    for each in model.graph.node:
        if each.op_type == "Relu":
            each.op_type, each.domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    said = edgeprune(
        "attack", path.name, "--attack", "square", "--attack-queries", "50", "--attack-samples", "8", "--json"
    )
    assert said.code == INCONCLUSIVE
    found = json.loads(said.out)
    assert found["result"]["grade"] == "black box"
    assert "no rule for com.microsoft.QuickGelu" in found["result"]["gradient_source"]
    assert any("followed no gradient" in line for line in found["warnings"])
    assert found["threat"]["attack"] == "square"


def test_mean_of_the_settings_is_not_applied_twice(project: Path, edgeprune: Command) -> None:
    """Our files normalise inside: what the settings say is for foreign ones."""
    bare = result(edgeprune, "run/model.onnx", "--mean", "0,0,0", "--std", "1,1,1")
    assert bare["clean"] == result(edgeprune, "run/model.onnx")["clean"]


def test_run_names_the_source_of_its_gradients(
    project: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads((project / "run" / "report.json").read_text())
    for side in ("dense", "compressed"):
        assert report["robustness"][side]["gradient_source"].startswith("twin of the file (parity ")
    monkeypatch.delitem(table.RULES, ("", "Relu"))  # type: ignore[arg-type]
    said = edgeprune("compress", "model.pt", "--eps", "1/255", "--json")
    assert said.code == 0, said.err
    assert "no rule for Relu" in said.err
    source = json.loads(said.out)["robustness"]["dense"]["gradient_source"]
    assert source == "the torch module that was exported (the file has no twin)"


def test_evidence_is_of_the_users_own_shape(project: Path, edgeprune: Command) -> None:
    path = foreign(project / "foreign.onnx")
    result(edgeprune, path.name, "--evidence", "found.npz")
    with np.load(project / "found.npz") as found:
        assert found["file_adversarials"].shape[1:] == (3, 8, 8)
