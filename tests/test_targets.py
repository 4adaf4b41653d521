"""`edgeprune targets`: probing a machine, calibrating estimates, and profiles that are written and read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sshd
from conftest import Command

from edgeprune import targets
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import UsageError
from edgeprune.latency.estimate import Calibration
from edgeprune.latency.measure import LatencyFile
from edgeprune.latency.operators import work_of
from edgeprune.latency.profiles import list_profiles, load_profile
from edgeprune.latency.writing import as_toml, write_profile

CALIBRATION = Calibration(
    runtime="onnxruntime",
    threads=1,
    method="a fit",
    source="a test",
    coefficients={"pointwise": 1.5e-8, "operators": 0.01},
    anchors=("separable 1 128",),
    error=0.05,
    largest=0.2,
    within_10=0.8,
    tested=6,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
def test_profile_that_is_written_is_read_again_as_it_was(tmp_path: Path, profile: object) -> None:
    whole = profile.model_copy(update={"estimates": {"onnxruntime": CALIBRATION}})  # type: ignore[attr-defined]
    write_profile(whole, tmp_path / "board.toml")
    assert load_profile(str(tmp_path / "board.toml")) == whole


def test_odd_names_and_texts_survive_toml(tmp_path: Path) -> None:
    odd = load_profile("cpu").model_copy(
        update={"description": 'a "board"\n[widths]', "estimates": {"my runtime.v2": CALIBRATION}}
    )
    (tmp_path / "odd.toml").write_text(as_toml(odd), encoding="utf-8")
    assert load_profile(str(tmp_path / "odd.toml")) == odd


def test_probe_measures_this_machine_once_and_writes_a_profile(tmp_path: Path, edgeprune: Command) -> None:
    said = edgeprune("targets", "probe", "--json", "--write", tmp_path / "mine.toml")
    assert said.code == 0, said.err
    found = {figure["name"]: figure for figure in json.loads(said.out)["figures"]}
    product = found["float32 matrix product, one core"]
    assert product["value"] > 0.1
    assert product["kind"] == "measured-local"
    assert "edgeprune targets probe, on" in product["source"]
    assert found["memory copy, one core"]["value"] > 0.1
    again = json.loads(edgeprune("targets", "probe", "cpu", "--json").out)
    assert {figure["name"]: figure for figure in again["figures"]} == found
    assert load_profile(str(tmp_path / "mine.toml")).cores


@pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)
def test_probe_over_ssh_says_that_it_was_measured_there(tmp_path: Path, edgeprune: Command) -> None:
    import sys

    with sshd.served(tmp_path) as server:
        there = ("--remote-python", sys.executable, "--remote-folder", tmp_path / "there")
        board = as_toml(load_profile("intel-n100").model_copy(update={"architecture": "any"}))
        (tmp_path / "board.toml").write_text(board)
        said = edgeprune("targets", "probe", tmp_path / "board.toml", *server.flags(), *there, "--json")
    assert said.code == 0, said.err
    kinds = {figure["name"]: figure["kind"] for figure in json.loads(said.out)["figures"]}
    assert kinds["memory copy, one core"] == "measured-remote"
    assert not (tmp_path / "there").exists()


def test_calibration_finds_the_costs_of_a_machine_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgeprune: Command
) -> None:
    """A machine whose every MAC costs 10 ns and every operator 10 us."""

    def p50(file: LatencyFile, *_: object) -> float:
        side = int(Path(file.path).stem.split("-")[-1])
        work = work_of(Path(file.path), (3, side, side))
        return work.macs * 1e-8 * 1e3 + work.operators * 0.01

    monkeypatch.setattr(targets, "p50_alone", p50)
    said = edgeprune("targets", "calibrate", "cpu", "--write", tmp_path / "mine.toml", "--runtimes", "onnxruntime")
    assert said.code == 0, said.err
    found = load_profile(str(tmp_path / "mine.toml")).estimates["onnxruntime"]
    assert found.error < 0.08
    assert (len(found.anchors), found.tested) == (6, 6)
    assert "edgeprune targets calibrate, on this machine" in found.source
    assert "not seen off by" in edgeprune("targets", "show", tmp_path / "mine.toml").out.replace("\n", " ")


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("prob", "cpu", "no such action: prob\n  did you mean probe"),
        ("calibrate", None, "name a target"),
        ("calibrate", "cpu", "needs a file to go to"),
        ("probe", "raspberry-pi-5", "name the device with --host"),
        ("nothing", None, "unknown target"),
    ],
)
def test_wrong_words_are_explained(what: str, name: str | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        targets.profile_for(what, name, Config(), None, Console())
    assert message in str(error.value)


def test_host_for_a_target_of_figures_only_is_refused(edgeprune: Command) -> None:
    said = edgeprune("targets", "probe", "stm32h7", "--host", "pi@board")
    assert said.code == 2
    assert "nothing can be measured on stm32h7" in said.err
