"""A device over ssh: a real sshd on loopback, what is measured there, what is left there, and what goes wrong."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sshd
from conftest import Command

from edgeprune.config import RemoteConfig, load_config
from edgeprune.errors import DeviceError, MeasurementError, UsageError
from edgeprune.files import sha256_of
from edgeprune.latency import parcel, remote
from edgeprune.latency.attaching import Pixels, check_there
from edgeprune.latency.measure import latency_file
from edgeprune.latency.precision import write_network
from edgeprune.latency.remote import Attached
from edgeprune.latency.ssh import Connection, LostError
from edgeprune.protocols import find
from edgeprune.records import LatencyRequest, Report, read_record

needs_sshd = pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)
LATENCY = Path(remote.__file__).parent
IMAGES = np.random.default_rng(0).random((4, 32, 8, 8), dtype=np.float32)
SHORT = ("--timing-processes", "2", "--timing-blocks", "3", "--timing-block-ms", "3")
BOARD = """
name = "board"
description = "this machine, over ssh"
measured = "remote"
architecture = "any"

[widths.any]
value = 4
unit = "channels"
kind = "estimated"
source = "a guess"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.served(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file to time and a profile; what is kept goes there, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / "model.onnx")
    (tmp_path / "board.toml").write_text(BOARD)
    return tmp_path


def settings(server: sshd.Server, place: Path, **changes: object) -> RemoteConfig:
    given = {
        "host": server.host,
        "port": server.port,
        "identity": server.identity,
        "options": (f"UserKnownHostsFile={server.known_hosts}", "GlobalKnownHostsFile=/dev/null"),
        "python": sys.executable,
        "folder": str(place / "on the board"),  # a space: everything is quoted
    }
    return RemoteConfig.model_validate({**given, **changes})


def request(folder: Path, **changes: object) -> LatencyRequest:
    np.save(folder / "images.npy", IMAGES)
    return LatencyRequest(
        runtime="onnxruntime",
        dense=latency_file(folder / "model.onnx"),
        compressed=None,
        images=str(folder / "images.npy"),
        processes=3,
        blocks=2,
        block_ms=2,
    ).model_copy(update=changes)


# ----------------------------------------------------------------------------------------------- over real ssh


@needs_sshd
def test_file_is_timed_over_ssh_and_nothing_stays_there(server: sshd.Server, place: Path, edgeprune: Command) -> None:
    there = ("--remote-python", sys.executable, "--remote-folder", place / "there")
    said = edgeprune("measure", "model.onnx", "--target", "board.toml", *server.flags(), *there, *SHORT, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["latency"]["kind"] == "measured-remote"
    assert found["latency"]["target"] == "board"
    assert found["latency"]["processes"] == 2
    assert found["latency"]["dense"]["sha256"] == sha256_of(place / "model.onnx")
    assert found["latency"]["machine"]["packages"]["numpy"] == np.__version__
    assert found["parity"]["max_difference"] <= found["parity"]["tolerance"]
    assert found["parity"]["reference"] == "this machine"
    assert not (place / "there").exists()
    assert not list((place / "cache").rglob("*.json"))


@needs_sshd
def test_lost_connection_keeps_what_was_measured_and_goes_on(
    server: sshd.Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process never answers; the same request then runs two processes, not three."""
    ran: list[int] = []
    real = Attached._ask

    def ask(device: Attached, job: dict[str, object], timeout_s: float = 60.0) -> object:
        if job["do"] == "measure":
            if ran == [0] and lost:
                raise LostError("the connection was lost")
            ran.append(int(str(job["process"])))
        return real(device, job, timeout_s)

    monkeypatch.setattr(Attached, "_ask", ask)
    monkeypatch.setattr(remote, "WAITS_S", (0.0,))
    device = find("device", "ssh")
    lost = True
    with (
        pytest.raises(DeviceError, match="the connection was lost") as error,
        device.attach(settings(server, place)) as board,
    ):
        board.measure(request(place), progress=lambda *_: None)
    assert "the same command goes on" in error.value.hint
    lost = False
    with device.attach(settings(server, place)) as board:
        blocks = board.measure(request(place), progress=lambda *_: None)
    assert ran == [0, 1, 2]
    assert {block.process for block in blocks} == {0, 1, 2}
    assert not list((place / "cache").rglob("*.json"))


@needs_sshd
def test_file_that_is_there_already_is_not_sent_again(
    server: sshd.Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    real = Connection.send

    def send(connection: Connection, file: Path, destination: str, *, timeout_s: float = 600.0) -> None:
        sent.append(file.name)
        real(connection, file, destination, timeout_s=timeout_s)

    monkeypatch.setattr(Connection, "send", send)
    with find("device", "ssh").attach(settings(server, place)) as board:
        one = request(place, processes=1)
        board.measure(one, progress=lambda *_: None)
        board.sent.clear()  # as after a lost connection: nobody here knows what lies there
        board.measure(one, progress=lambda *_: None)
    assert sent == ["runner.pyz", "images.npy", "model.onnx"]


@needs_sshd
def test_logits_there_are_those_of_here(server: sshd.Server, place: Path) -> None:
    session = find("runtime", "onnxruntime").open(place / "model.onnx", threads=1)
    file = latency_file(place / "model.onnx")
    with find("device", "ssh").attach(settings(server, place)) as board:
        parity, logits = check_there(board, file, session, Pixels(IMAGES, "random"), "board")
    assert np.array_equal(logits, session.logits(IMAGES))
    assert (parity.target, parity.same_labels, parity.inputs) == ("board", True, "random")


@needs_sshd
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "/no/such/python"}, "has no /no/such/python"),
        ({"python": "false"}, "false does not run"),
        ({"folder": "/proc/none"}, "cannot write"),
        ({"port": 1}, "nobody listens there"),
        ({"host": "nobody-of-this-name@127.0.0.1"}, "refuses the login"),
        ({"host": "no-such-host.invalid"}, "no such host"),
        ({"options": ("UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null")}, "host key is not known"),
        ({"options": ("NoSuchOption=1",)}, "does not understand an option"),
    ],
)
def test_what_is_wrong_with_a_device_is_said(
    server: sshd.Server, place: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DeviceError, match=message), find("device", "ssh").attach(settings(server, place, **changes)):
        pass


@needs_sshd
def test_device_without_packages_says_how_to_get_them(server: sshd.Server, place: Path) -> None:
    bare = place / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with (
        pytest.raises(DeviceError, match="numpy is not installed") as error,
        find("device", "ssh").attach(settings(server, place, python=str(bare))) as board,
    ):
        board.measure(request(place), progress=lambda *_: None)
    assert "-m pip install numpy" in error.value.hint


@needs_sshd
def test_another_architecture_is_refused(server: sshd.Server, place: Path, edgeprune: Command) -> None:
    (place / "board.toml").write_text(BOARD.replace('"any"\n\n', '"riscv64"\n\n'))
    there = ("--remote-python", sys.executable, "--remote-folder", place / "there")
    said = edgeprune("measure", "model.onnx", "--target", "board.toml", *server.flags(), *there)
    assert said.code == 3
    assert "the target board is riscv64" in said.err
    assert not (place / "there").exists()


@needs_sshd
def test_device_with_too_little_room_is_refused_before_anything_is_copied(server: sshd.Server, place: Path) -> None:
    with find("device", "ssh").attach(settings(server, place)) as board:
        board.free_bytes = 100
        with pytest.raises(DeviceError, match="no space left"):
            board.measure(request(place), progress=lambda *_: None)


@needs_sshd
def test_file_that_the_runtime_refuses_is_an_error_of_the_file(server: sshd.Server, place: Path) -> None:
    (place / "model.onnx").write_text("no network")
    with (
        find("device", "ssh").attach(settings(server, place)) as board,
        pytest.raises(MeasurementError, match=r"the runtime refuses model\.onnx"),
    ):
        board.measure(request(place), progress=lambda *_: None)


@needs_sshd
def test_whole_run_over_ssh_reports_the_device(
    server: sshd.Server, project: Path, monkeypatch: pytest.MonkeyPatch, edgeprune: Command
) -> None:
    shutil.rmtree(project / "run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    (project / "board.toml").write_text(BOARD)
    there = ("--remote-python", sys.executable, "--remote-folder", project / "there", "--remote-samples", "64")
    budgets = ("--max-latency-ms", "1000", "--max-accuracy-drop", "50 pt", "--runtimes", "onnxruntime")
    said = edgeprune("compress", "model.pt", "--target", "board.toml", *server.flags(), *there, *budgets)
    assert said.code == 0, said.err
    report = read_record(Report, project / "run" / "report.json")
    assert isinstance(report.latency, tuple)
    assert [(item.kind, item.target) for item in report.latency] == [("measured-remote", "board")]
    assert report.latency[0].machine is not None
    assert [item.target for item in report.parity] == ["", "", "board", "board"]
    assert isinstance(report.accuracy, tuple)
    assert [(item.target, item.compressed.total) for item in report.accuracy] == [("", 96), ("board", 64)]
    assert report.verdict is not None
    rows = {row.metric: row for row in report.verdict.rows}
    assert rows["latency_ms"].subject == "onnxruntime on board"
    assert "board gives the same labels (64 images)" in rows["accuracy_drop"].reason
    text = (project / "run" / "report.md").read_text()
    assert "onnxruntime on board, 1 thread" in text
    assert "Device board: " in text


# ------------------------------------------------------------------------------------------- without a device


@pytest.mark.parametrize("name", parcel.MODULES)
def test_runner_is_written_in_python_3_8(name: str) -> None:
    """What 3.8 cannot parse, and what its library lacks: the runner meets old boards."""
    text = (LATENCY / f"{name}.py").read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    assert "from __future__ import annotations" in text
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"removeprefix", "removesuffix", "file_digest", "bit_count"}
    keywords = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    assert not keywords & {"slots", "strict", "kw_only"}


def test_runner_needs_nothing_of_edgeprune_but_what_it_carries(tmp_path: Path) -> None:
    runner = parcel.write_runner(tmp_path)
    job = json.dumps({"do": "describe", "folder": str(tmp_path)})
    command = [sys.executable, "-I", "-S", str(runner)]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["result"]["free_bytes"] > 0


def test_same_sources_make_the_same_runner(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert parcel.write_runner(tmp_path).read_bytes() == parcel.write_runner(tmp_path / "other").read_bytes()


def test_nothing_of_the_host_or_the_folder_is_run_by_a_shell() -> None:
    line = Connection("pi@board").command("cat > 'a b'; touch x")
    assert line[-3:] == ["--", "pi@board", "exec sh -c 'cat > '\"'\"'a b'\"'\"'; touch x'"]
    assert "BatchMode=yes" in line


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "", "two words", "pi@board\n"])
def test_host_that_is_an_option_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=r"--host|must be user@host"):
        load_config(None, {"remote": {"host": host}})


def test_host_for_this_machine_is_a_usage_error(place: Path, edgeprune: Command) -> None:
    said = edgeprune("measure", "model.onnx", "--host", "pi@board")
    assert said.code == 2
    assert "cpu is this machine, and --host names another" in said.err


def test_target_elsewhere_without_a_host_says_what_to_give(place: Path, edgeprune: Command) -> None:
    said = edgeprune("measure", "model.onnx", "--target", "raspberry-pi-5")
    assert said.code == 2
    assert "--host user@address" in said.err


def test_answers_of_another_day_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.latency import kept

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = kept.Kept.of("board", "{}", "a", {"do": "measure"})
    answers.write(0, {"blocks": []})
    assert answers.read(0) == {"blocks": []}
    assert kept.Kept.of("board", "{}", "another runner", {"do": "measure"}).read(0) is None
    monkeypatch.setattr(kept, "LONGEST_S", -1)
    assert answers.read(0) is None
