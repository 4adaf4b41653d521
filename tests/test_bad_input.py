"""Whatever a person gets wrong ends in one clear error and its exit code; nothing is half written, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from clear_errors import COMPRESS, NO_RESULT, USAGE, assert_clear, changed, contents
from conftest import Command

from edgeprune.config import ModelConfig


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """Files with one thing wrong in each."""
    folder = tmp_path_factory.mktemp("bad")
    _bad_models(folder, finished)
    _bad_data(folder, finished)
    report = (finished / "run" / "report.json").read_text()
    (folder / "cut.json").write_text(report[: len(report) // 2])
    (folder / "future.json").write_text(report.replace('"schema_version": "1"', '"schema_version": "9"', 1))
    (folder / "folder").mkdir()
    _bad_settings(folder)
    return folder


def _bad_models(folder: Path, finished: Path) -> None:
    from edgeprune.export.onnx import export_onnx

    from edgeprune.models import load

    whole = (finished / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("not a model")
    (folder / "empty.pt").touch()
    torch.save([1, 2], folder / "list.pt")
    state = tiny.trained().state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, folder / "extra.pt")
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, folder / "nan.pt")
    bundle = load(finished / "model.pt", ModelConfig(arch="tiny:NanNet", input_shape=(3, 8, 8)))
    export_onnx(bundle, folder / "nan.onnx")
    export_onnx(load(finished / "model.pt", _settings()), folder / "unnormalised.onnx")
    for suffix in (".onnx", ".xml"):
        (folder / f"text{suffix}").write_text("not a model")
    exported = (finished / "run" / "model.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(exported[: len(exported) // 2])
    (folder / "alone.xml").write_bytes((finished / "run" / "model.xml").read_bytes())


def _settings() -> ModelConfig:
    return ModelConfig(arch="tiny:TinyNet", input_shape=(3, 8, 8))


def _bad_data(folder: Path, finished: Path) -> None:
    good = tiny.quadrants(16, seed=3)
    images, labels = good["images"], good["labels"]
    with_nan = images.copy()
    with_nan[3, 0, 0, 0] = np.nan
    arrays: dict[str, dict[str, Any]] = {
        "label9": {"labels": np.where(labels == 3, 9, labels)},
        "negative": {"labels": np.where(labels == 3, -1, labels)},
        "fractions": {"labels": labels.astype(np.float32)},
        "few": {"labels": labels[:5]},
        "none": {"images": images[:0], "labels": labels[:0]},
        "bytes": {"images": images * 255},
        "normalised": {"images": (images - 0.5) / 0.5},
        "nan": {"images": with_nan},
        "last": {"images": images.transpose(0, 2, 3, 1)},
        "first": {"images": (images * 255).astype(np.uint8)},
        "large": {"images": np.repeat(np.repeat(images, 2, 2), 2, 3)},
        "whole": {"images": (images * 255).astype(np.int64)},
    }
    for name, changes in arrays.items():
        np.savez(folder / f"{name}.npz", **{**good, **changes})
    np.savez(folder / "names.npz", x=images, y=labels)
    np.savez(folder / "objects.npz", images=np.array([{}] * 3, dtype=object), labels=labels[:3])
    packed = (finished / "test.npz").read_bytes()
    (folder / "cut.npz").write_bytes(packed[: len(packed) // 2])
    (folder / "text.npz").write_text("not data")


def _bad_settings(folder: Path) -> None:
    for name, changes in {
        "key": {"prune__criterium": '"l1"'},
        "elsewhere": {"prune__epochs": "3"},
        "section": {"prunning__ratio": "0.5"},
        "kind": {"attack__steps": '"many"'},
        "switch": {"attack__steps": "true"},
        "goals": {"prune__speedup": "2"},
        "drop": {"budget__accuracy_drop": "2"},
        "criterion": {"prune__criterion": '"taylr"'},
        "attack": {"attack__attack": '"pgdd"'},
        "runtime": {"latency__runtimes": '["onxruntime"]'},
        "target": {"run__target": '"raspbery-pi-5"'},
        "recipe": {"recover__recipe": '"distil"'},
        "nowhere": {"data__train": '"gone.npz"'},
    }.items():
        (folder / f"{name}.toml").write_text(tiny.settings(**changes))
    (folder / "scalar.toml").write_text('target = "cpu"\n')
    (folder / "broken.toml").write_text("[run\n")
    (folder / "latin.toml").write_bytes(b"[run]\ntarget = '\xff'\n")


REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    # the model
    "no model": (("compress", "gone.pt"), USAGE, ("no such model file: gone.pt",)),
    "a folder as model": (("compress", "{bad}/folder"), USAGE, ("is a folder",)),
    "cut model": (("compress", "{bad}/cut.pt"), NO_RESULT, ("cut.pt is damaged", "whole")),
    "text as model": (("compress", "{bad}/text.pt"), NO_RESULT, ("text.pt is damaged or not a model",)),
    "empty model": (("compress", "{bad}/empty.pt"), NO_RESULT, ("is empty",)),
    "data as model": (("compress", "test.npz"), NO_RESULT, ("is not a torch network", "that is data")),
    "ONNX as model": (("compress", "run/model.onnx"), NO_RESULT, ("is not a torch network", "edgeprune measure")),
    "a list as model": (("compress", "{bad}/list.pt"), NO_RESULT, ("holds no network",)),
    "foreign weights": (("compress", "{bad}/extra.pt"), NO_RESULT, ("do not fit the architecture", "extra")),
    "NaN weights": (("compress", "{bad}/nan.pt"), NO_RESULT, ("conv1.weight", "NaN")),
    "two outputs": ((*COMPRESS, "--arch", "tiny:PairNet"), NO_RESULT, ("not return one tensor", "--output")),
    "no constructor": ((*COMPRESS, "--arch", "tiny:TinyNett"), USAGE, ("did you mean TinyNet?",)),
    "no module": ((*COMPRESS, "--arch", "tinyy:TinyNet"), NO_RESULT, ("there is no module tinyy",)),
    "no name": ((*COMPRESS, "--arch", "TinyNet"), USAGE, ("not the name of a constructor", "package.module:callable")),
    "wrong argument": ((*COMPRESS, "--arch-args", '{"widht": 8}'), USAGE, ("widht", "--arch-args")),
    "not JSON": ((*COMPRESS, "--arch-args", "{width"), USAGE, ("--arch-args is not JSON",)),
    "other width": ((*COMPRESS, "--arch-args", '{"width": 8}'), NO_RESULT, ("do not fit", "conv1.weight")),
    "wrong channels": ((*COMPRESS, "--input-shape", "1,8,8"), USAGE, ("--input-shape 3,8,8?",)),
    "wrong size": ((*COMPRESS, "--input-shape", "3,9,9"), USAGE, ("does not take images of shape 3,9,9",)),
    "shape of two": ((*COMPRESS, "--input-shape", "3,8"), USAGE, ("--input-shape 3,8: must be 3 whole numbers",)),
    "shape with x": ((*COMPRESS, "--input-shape", "3x8x8"), USAGE, ("--input-shape 3x8x8: must be 3 whole",)),
    "shape of nothing": ((*COMPRESS, "--input-shape", "3,0,8"), USAGE, ("three positive numbers",)),
    "mean without std": ((*COMPRESS, "--mean", "0.5"), USAGE, ("mean has 1 values and std 3",)),
    "two means": ((*COMPRESS, "--mean", "0,0", "--std", "1,1"), USAGE, ("2 values, the images have 3 channels",)),
    "two classes": ((*COMPRESS, "--classes", "a,b"), USAGE, ("2 class names for a network with 4",)),
    # the data
    "no data": ((*COMPRESS, "--test", "gone.npz"), USAGE, ("no such test data: gone.npz", "--test")),
    "model as data": ((*COMPRESS, "--test", "model.pt"), USAGE, ("model.pt", ".npz")),
    "cut data": ((*COMPRESS, "--test", "{bad}/cut.npz"), NO_RESULT, ("cut.npz",)),
    "text as data": ((*COMPRESS, "--train", "{bad}/text.npz"), NO_RESULT, ("text.npz",)),
    "objects": ((*COMPRESS, "--test", "{bad}/objects.npz"), NO_RESULT, ("Python objects",)),
    "other names": ((*COMPRESS, "--test", "{bad}/names.npz"), NO_RESULT, ("it holds: x, y", "images and labels")),
    "unknown label": ((*COMPRESS, "--test", "{bad}/label9.npz"), NO_RESULT, ("label 9", "from 0 to 3")),
    "unknown train label": ((*COMPRESS, "--train", "{bad}/label9.npz"), NO_RESULT, ("label 9", "from 0 to 3")),
    "negative label": ((*COMPRESS, "--test", "{bad}/negative.npz"), NO_RESULT, ("label -1",)),
    "fractional labels": ((*COMPRESS, "--test", "{bad}/fractions.npz"), NO_RESULT, ("float32", "whole numbers")),
    "too few labels": ((*COMPRESS, "--test", "{bad}/few.npz"), NO_RESULT, ("16 images and 5 labels",)),
    "no images": ((*COMPRESS, "--test", "{bad}/none.npz"), NO_RESULT, ("no images",)),
    "pixels to 255": ((*COMPRESS, "--test", "{bad}/bytes.npz"), NO_RESULT, ("0 to 1", "divide by 255")),
    "normalised pixels": ((*COMPRESS, "--test", "{bad}/normalised.npz"), NO_RESULT, ("look normalised", "--mean")),
    "NaN pixels": ((*COMPRESS, "--test", "{bad}/nan.npz"), NO_RESULT, ("image 3 of nan.npz", "NaN")),
    "channels last": ((*COMPRESS, "--test", "{bad}/last.npz"), NO_RESULT, ("images.transpose(0, 3, 1, 2)",)),
    "uint8 channels first": ((*COMPRESS, "--test", "{bad}/first.npz"), NO_RESULT, ("images.transpose(0, 2, 3, 1)",)),
    "other image size": ((*COMPRESS, "--test", "{bad}/large.npz"), NO_RESULT, ("(3, 16, 16)", "(3, 8, 8)")),
    "int64 images": ((*COMPRESS, "--test", "{bad}/whole.npz"), NO_RESULT, ("int64", "uint8")),
    "more samples than images": ((*COMPRESS, "--samples", "500"), USAGE, ("--samples asks for 500", "has 96")),
    "more attacked": ((*COMPRESS, "--attack-samples", "97"), USAGE, ("--attack-samples asks for 97", "has 96")),
    # settings in the file
    "no settings": ((*COMPRESS, "-c", "gone.toml"), USAGE, ("no such configuration file: gone.toml",)),
    "a folder as settings": ((*COMPRESS, "-c", "{bad}/folder"), USAGE, ("cannot read", "Is a directory")),
    "broken TOML": ((*COMPRESS, "-c", "{bad}/broken.toml"), USAGE, ("broken.toml is not TOML",)),
    "not UTF-8": ((*COMPRESS, "-c", "{bad}/latin.toml"), USAGE, ("latin.toml is not TOML",)),
    "unknown key": ((*COMPRESS, "-c", "{bad}/key.toml"), USAGE, ("prune.criterium", "did you mean criterion?")),
    "key of another section": ((*COMPRESS, "-c", "{bad}/elsewhere.toml"), USAGE, ("prune.epochs", "into [recover]")),
    "unknown section": ((*COMPRESS, "-c", "{bad}/section.toml"), USAGE, ("prunning", "did you mean prune?")),
    "key without section": (
        (*COMPRESS, "-c", "{bad}/scalar.toml"),
        USAGE,
        ("target", "it belongs into [attack] or [run]"),
    ),
    "text for a number": ((*COMPRESS, "-c", "{bad}/kind.toml"), USAGE, ('attack.steps = "many": must be a whole',)),
    "true for a number": ((*COMPRESS, "-c", "{bad}/switch.toml"), USAGE, ("attack.steps is not a switch",)),
    "two goals": ((*COMPRESS, "-c", "{bad}/goals.toml"), USAGE, ("one goal at a time, not ratio and speedup",)),
    "two points as 2": ((*COMPRESS, "-c", "{bad}/drop.toml"), USAGE, ("budget.accuracy_drop = 2", '"2 pt"')),
    "unknown criterion": ((*COMPRESS, "-c", "{bad}/criterion.toml"), USAGE, ("taylr", "did you mean taylor?")),
    "unknown attack": ((*COMPRESS, "-c", "{bad}/attack.toml"), USAGE, ("pgdd", "did you mean pgd?")),
    "unknown runtime": ((*COMPRESS, "-c", "{bad}/runtime.toml"), USAGE, ("did you mean onnxruntime?",)),
    "unknown target": ((*COMPRESS, "-c", "{bad}/target.toml"), USAGE, ("did you mean raspberry-pi-5?",)),
    "unknown recipe": ((*COMPRESS, "-c", "{bad}/recipe.toml"), USAGE, ("distil", "did you mean distill?")),
    "data beside the file": ((*COMPRESS, "-c", "{bad}/nowhere.toml"), USAGE, ("no such train data", "bad0/gone.npz")),
    # flags
    "no such flag": ((*COMPRESS, "--raito", "0.5"), USAGE, ("--raito", "--ratio", "edgeprune compress --help")),
    "no such command": (("comprss", "model.pt"), USAGE, ("comprss", "compress")),
    "no argument": (("compress",), USAGE, ("Missing argument",)),
    "text for a ratio": ((*COMPRESS, "--ratio", "half"), USAGE, ("--ratio half: must be a number",)),
    "ratio of one": ((*COMPRESS, "--ratio", "1"), USAGE, ("--ratio 1: must be below 1",)),
    "two goal flags": ((*COMPRESS, "--ratio", "0.5", "--speedup", "2"), USAGE, ("not ratio and speedup",)),
    "no threads": ((*COMPRESS, "--threads", "0"), USAGE, ("--threads 0: must be above 0",)),
    "more threads than cores": ((*COMPRESS, "--threads", "9999"), USAGE, ("9999 threads", "or fewer")),
    "unknown unit": ((*COMPRESS, "--max-size", "500 XB"), USAGE, ("--max-size 500 XB", "units: B, kB")),
    "not finite": ((*COMPRESS, "--min-speedup", "nan"), USAGE, ("must be a finite number",)),
    "eps of nothing": ((*COMPRESS, "--eps", "0"), USAGE, ("--eps 0: must be above 0",)),
    "eps by zero": ((*COMPRESS, "--eps", "8/0"), USAGE, ("--eps 8/0: must be a fraction",)),
    "eps in levels": ((*COMPRESS, "--eps", "8"), USAGE, ("eps 8 allows every image", "8/255?")),
    "unknown norm": ((*COMPRESS, "--norm", "l3"), USAGE, ("--norm l3: must be one of linf, l2, l1",)),
    "no runtimes": ((*COMPRESS, "--runtimes", ","), USAGE, ("must name at least one runtime",)),
    "a runtime twice": ((*COMPRESS, "--runtimes", "openvino,openvino"), USAGE, ("must name each runtime once",)),
    "no such layer": ((*COMPRESS, "--ignore", "conv3"), USAGE, ("the network has no such layer",)),
    "no CUDA": ((*COMPRESS, "--device", "quantum"), USAGE, ("torch cannot use the device quantum", "--device cpu")),
    "no such device": ((*COMPRESS, "--target", "cup"), USAGE, ("unknown target: cup", "did you mean cpu?")),
    "speed-up elsewhere": (
        (*COMPRESS, "--target", "raspberry-pi-5", "--speedup", "2"),
        USAGE,
        ("raspberry-pi-5 is not this machine", "--macs-ratio"),
    ),
    "gate without budgets": (("compress", "model.pt", "-c", "/dev/null", "--gate"), USAGE, ("without budgets",)),
    # the output
    "out of nothing": (("compress", "model.pt", "--out", ""), USAGE, ("--out : must name a file or a folder",)),
    "data of nothing": ((*COMPRESS, "--train", ""), USAGE, ("--train : must name a file or a folder",)),
    "out below a file": (("compress", "model.pt", "--out", "model.pt/x"), NO_RESULT, ("cannot write", "--out")),
    # finished files
    "no report": (("gate", "gone.json", "--artifact", "run/model.onnx"), USAGE, ("no such report: gone.json",)),
    "cut report": (("gate", "{bad}/cut.json", "--artifact", "run/model.onnx"), USAGE, ("cut.json is not a Report",)),
    "future report": (("compare", "{bad}/future.json", "run"), USAGE, ("newer schema '9'",)),
    "plan as report": (("gate", "run/plan.json", "--artifact", "run/model.onnx"), USAGE, ("is not a Report",)),
    "no artifact": (("gate", "run", "--artifact", "gone.onnx"), USAGE, ("gone.onnx", "--artifact")),
    "artifact not named": (("gate", "run"), USAGE, ("--artifact",)),
    "no budgets": (
        ("gate", "run", "--artifact", "run/model.onnx", "-c", "/dev/null"),
        USAGE,
        ("no budgets", "[budget]"),
    ),
    "no run to report": (("report", "{bad}/folder"), USAGE, ("no such report",)),
    "cut report to render": (("report", "{bad}/cut.json"), USAGE, ("is not a Report",)),
    "unknown format": (("report", "run", "--format", "pdf"), USAGE, ("pdf", "html, md, junit")),
    "measure nothing": (("measure", "gone.onnx"), USAGE, ("no such file: gone.onnx",)),
    "measure a network": (("measure", "model.pt"), USAGE, ("no runtime serves .pt", ".onnx, .xml")),
    "measure text": (("measure", "{bad}/text.onnx"), NO_RESULT, ("refuses", "text.onnx")),
    "measure half a file": (("measure", "{bad}/cut.onnx"), NO_RESULT, ("refuses", "cut.onnx")),
    "measure text as IR": (("measure", "{bad}/text.xml"), NO_RESULT, ("text.xml",)),
    "measure without weights": (("measure", "{bad}/alone.xml"), NO_RESULT, ("alone.xml", "bin")),
    "against nothing": (("measure", "run/model.onnx", "--against", "gone.onnx"), USAGE, ("--against",)),
    "against another kind": (("measure", "run/model.onnx", "--against", "run/model.xml"), USAGE, ("not of one kind",)),
    "against text": (("measure", "run/model.onnx", "--against", "{bad}/text.onnx"), NO_RESULT, ("text.onnx",)),
    "measure another shape": (("measure", "run/model.onnx", "--input-shape", "3,9,9"), USAGE, ("3,8,8", "3,9,9")),
    "measure elsewhere": (("measure", "run/model.onnx", "--target", "rk3588"), USAGE, ("not this machine",)),
    "accuracy without data": (("measure", "run/model.onnx", "--accuracy", "-c", "/dev/null"), USAGE, ("--test",)),
    "NaN logits": (("measure", "{bad}/nan.onnx", "--accuracy"), NO_RESULT, ("NaN", "must not ship")),
    "attack nothing": (("attack", "gone.onnx"), USAGE, ("no such file: gone.onnx",)),
    "attack text": (("attack", "{bad}/text.onnx"), NO_RESULT, ("text.onnx",)),
    "attack without data": (("attack", "run/model.onnx", "-c", "/dev/null"), USAGE, ("needs test data", "--test")),
    "gradients of nothing": (
        ("attack", "run/model.onnx", "--gradients", "gone.pt"),
        USAGE,
        ("no bundle", "gone.pt", "--gradients"),
    ),
    "attack NaN by its twin": (("attack", "{bad}/nan.onnx"), NO_RESULT, ("NaN", "must not ship")),
    "attack another shape": (("attack", "run/model.onnx", "--input-shape", "3,9,9"), USAGE, ("does not hold", "3,9,9")),
    "gradients of another": (
        ("attack", "run/dense/model.onnx", "--gradients", "run/pruned.pt"),
        NO_RESULT,
        ("is not the network that", "--gradients"),
    ),
    "attack NaN": (("attack", "{bad}/nan.onnx", "--gradients", "model.pt"), NO_RESULT, ("NaN", "must not ship")),
    "unknown attack flag": (("attack", "run/model.onnx", "--attack", "fgs"), USAGE, ("unknown attack: fgs",)),
    "attack on no device": (("attack", "run/model.onnx", "--device", "quantum"), USAGE, ("quantum",)),
    "inspect nothing": (("inspect", "gone.pt"), USAGE, ("no such model file",)),
    "inspect by what": (("inspect", "model.pt", "--criterion", "l3"), USAGE, ("unknown criterion: l3",)),
    "inspect without data": (("inspect", "model.pt", "--criterion", "taylr"), USAGE, ("did you mean taylor?",)),
    "no such target": (("targets", "pi"), USAGE, ("unknown target: pi",)),
    "no such profile": (("targets", "./gone.toml"), USAGE, ("no such hardware profile",)),
    "doctor without threads": (("doctor", "--threads", "0"), USAGE, ("--threads",)),
    "demo below a file": (("demo", "--folder", "model.pt/demo"), NO_RESULT, ("cannot write",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_clear_error_and_changes_nothing(
    case: str, bad: Path, project: Path, edgeprune: Command
) -> None:
    arguments, code, words = REFUSED[case]
    before = contents(project)
    said = edgeprune(*(argument.format(bad=bad) if "{bad}" in argument else argument for argument in arguments))
    assert_clear(said, code, *words)
    assert changed(project, before) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_on_a_machine_without_it_is_refused(project: Path, edgeprune: Command) -> None:
    assert_clear(edgeprune(*COMPRESS, "--device", "cuda"), USAGE, "torch cannot use the device cuda")
    assert not (project / "new").exists()
