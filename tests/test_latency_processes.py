"""Real timing processes: fresh, pinned, gone with their caller; and what the room says of bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeprune.config import LatencyConfig
from edgeprune.errors import DataError, MeasurementError, UsageError
from edgeprune.files import sha256_of
from edgeprune.latency import measure as measuring
from edgeprune.latency.local import DEVICE, choose_cores
from edgeprune.latency.measure import Bench, latency_file, measure, quick_ratio
from edgeprune.latency.precision import write_network
from edgeprune.records import BlockSamples, LatencyComparison, LatencyFile, LatencyRequest, QuickRatio
from edgeprune.reporting.listings import _start

DENSE = LatencyFile(path="/dense", sha256="a" * 64)

PLUGIN = '''
import os, sys, time
from pathlib import Path
import numpy as np
from edgeprune.records import RuntimeInfo

class Spinner:
    """Runs for as many microseconds as the file says; "crash" aborts."""
    def __init__(self, path, threads):
        self.info = RuntimeInfo(name="spin", version="1", precision="float32", threads=threads)
        self.seconds = 1e-6 * float(path.read_text())
        print("chatter on stdout")
        seen = f"{os.getpid()} {sorted(os.sched_getaffinity(0))} {'torch' in sys.modules}"
        log = Path(os.environ["SPIN_LOG"])
        log.with_suffix(".new").write_text(seen)
        log.with_suffix(".new").replace(log)  # each session writes it: a reader must not see it empty

    def logits(self, images):
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return np.zeros((len(images), 10), dtype=np.float32)

class Spin:
    name, format, suffix = "spin", "spin", ".txt"
    def version(self):
        return "1"
    def convert(self, onnx, destination):
        raise NotImplementedError
    def open(self, path, *, threads):
        if path.read_text() == "crash":
            sys.stderr.write("the kernel is out of cheese\\n")
            sys.stderr.flush()
            os._exit(7)
        return Spinner(path, threads)

RUNTIME = Spin()
'''


@pytest.fixture
def spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a third party's runtime that is installed beside edgeprune, here and in child processes."""
    (tmp_path / "spin_runtime.py").write_text(PLUGIN)
    info = tmp_path / "spin_runtime-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spin-runtime\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edgeprune.runtimes]\nspin = spin_runtime:RUNTIME\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SPIN_LOG", str(tmp_path / "log"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


IMAGES = np.random.default_rng(0).random((7, 32, 8, 8), dtype=np.float32)
SHORT = LatencyConfig(processes=2, blocks=4, block_ms=10, batch_size=3)


def timed(folder: Path, dense: str, compressed: str, settings: LatencyConfig = SHORT) -> LatencyComparison:
    files = []
    for name, text in (("dense.txt", dense), ("compressed.txt", compressed)):
        (folder / name).write_text(text)
        files.append(latency_file(folder / name))
    return measure(files[0], files[1], "spin", IMAGES, settings, bench=Bench("cpu"), seed=0, progress=lambda *_: None)


def test_real_processes_find_a_known_ratio(spin: Path) -> None:
    result = timed(spin, "1500", "500")
    assert result.speedup is not None
    assert result.speedup.value == pytest.approx(3.0, rel=0.1)
    assert result.dense.p50_ms == pytest.approx(1.5, rel=0.1)
    assert result.kind == "measured-local"
    assert (result.batch_size, result.processes, result.runtime.name) == (3, 2, "spin")


def test_timing_process_is_fresh_and_pinned_and_holds_no_torch(spin: Path) -> None:
    result = timed(spin, "500", "500", SHORT.model_copy(update={"processes": 1}))
    pid, _, rest = (spin / "log").read_text().partition(" ")
    assert int(pid) != os.getpid()
    assert rest == f"{list(result.cores)} False"
    assert len(result.cores) == 1
    assert result.dense.peak_rss_bytes
    assert 1e7 < result.dense.peak_rss_bytes < 4e8


def test_file_that_changed_is_refused(spin: Path) -> None:
    (spin / "dense.txt").write_text("500")
    file = latency_file(spin / "dense.txt")
    (spin / "dense.txt").write_text("501")
    with pytest.raises(MeasurementError, match="not the file that was to be timed") as error:
        measure(file, None, "spin", IMAGES, SHORT, bench=Bench("cpu"), seed=0, progress=lambda *_: None)
    assert file.sha256 in error.value.where


def test_companion_that_changed_is_refused(spin: Path) -> None:
    (spin / "dense.txt").write_text("500")
    (spin / "weights.bin").write_text("a")
    file = latency_file(spin / "dense.txt", (spin / "weights.bin",))
    (spin / "weights.bin").write_text("b")
    with pytest.raises(MeasurementError, match=r"weights\.bin is not the file"):
        measure(file, None, "spin", IMAGES, SHORT, bench=Bench("cpu"), seed=0, progress=lambda *_: None)


def test_dead_timing_process_is_an_error_with_its_last_words(spin: Path) -> None:
    with pytest.raises(MeasurementError, match="ended with exit code 7") as error:
        timed(spin, "500", "crash")
    assert "the kernel is out of cheese" in error.value.where


CALLER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit one that is ignored
from pathlib import Path
from edgeprune.latency import measure as measuring
from edgeprune.latency.local import DEVICE
from edgeprune.records import LatencyRequest
DEVICE.measure(LatencyRequest.model_validate_json(sys.argv[1]), progress=lambda *_: None)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_timing_process_outlives_its_caller(spin: Path, sent: signal.Signals) -> None:
    (spin / "dense.txt").write_text("500")
    np.save(spin / "images.npy", IMAGES)
    request = LatencyRequest(
        runtime="spin",
        dense=latency_file(spin / "dense.txt"),
        compressed=None,
        images=str(spin / "images.npy"),
        blocks=4000,
    )
    with subprocess.Popen([sys.executable, "-c", CALLER, request.model_dump_json()], stderr=subprocess.PIPE) as caller:
        try:
            log = spin / "log"
            _wait_for(log.exists)
            worker = int(log.read_text().split()[0])
            caller.send_signal(sent)
            caller.wait(timeout=20)
            _wait_for(lambda: not _runs(worker))
            assert caller.returncode != 0
        finally:
            caller.kill()


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie that nobody has collected yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_real_onnx_file_is_timed_in_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write_network(path)
    seen: list[float] = []
    result = measure(
        latency_file(path),
        None,
        "onnxruntime",
        IMAGES,
        SHORT,
        bench=Bench("cpu"),
        seed=0,
        progress=lambda _, x: seen.append(x),
    )
    assert result.verdict in ("alone", "inconclusive")
    assert result.dense.sha256 == sha256_of(path)
    assert 0 < result.dense.min_ms <= result.dense.p50_ms < 50
    assert result.dense.cold_start_ms > 0
    assert result.dense.runtime_p50_ms is None  # it tells no such time without its profiler
    assert result.runtime.name == "onnxruntime"
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert LatencyComparison.model_validate_json(result.to_json()) == result


def test_openvino_tells_its_own_part_of_what_a_caller_waits_for(tmp_path: Path) -> None:
    write_network(tmp_path / "network.onnx")
    file, brief = latency_file(tmp_path / "network.onnx"), SHORT.model_copy(update={"processes": 1})
    quiet = Bench("cpu")
    found = measure(file, None, "openvino", IMAGES, brief, bench=quiet, seed=0, progress=lambda *_: None).dense
    assert found.runtime_p50_ms is not None
    assert 0 < found.runtime_p50_ms < found.p50_ms
    assert f"inside the runtime {found.runtime_p50_ms:.3f} ms of the p50; peak memory" in _start("network", found)


def test_quick_ratio_steers_by_the_same_protocol_without_a_control(spin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[str]()
    steer = measuring.steer

    def spied(samples: Sequence[BlockSamples], request: LatencyRequest) -> QuickRatio:
        seen.update(block.label for block in samples)
        return steer(samples, request)

    monkeypatch.setattr(measuring, "steer", spied)
    for name, text in (("dense.txt", "600"), ("compressed.txt", "300")):
        (spin / name).write_text(text)
    files = latency_file(spin / "dense.txt"), latency_file(spin / "compressed.txt")
    ratio = quick_ratio(*files, "spin", IMAGES, SHORT, 0)
    assert seen == {"dense", "compressed"}
    assert ratio.value == pytest.approx(2.0, rel=0.1)
    assert ratio.dense_p50_ms == pytest.approx(0.6, rel=0.1)
    assert ratio.compressed_p50_ms == pytest.approx(0.3, rel=0.1)
    assert ratio.compressed_interval.low <= ratio.compressed_p50_ms <= ratio.compressed_interval.high


def test_quick_ratio_pools_more_processes_until_it_is_enough(spin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spin / "dense.txt").write_text("200")
    file, looks = latency_file(spin / "dense.txt"), list[int]()
    monkeypatch.setattr(measuring, "QUICK_BLOCKS", 2)
    monkeypatch.setattr(measuring, "QUICK_LOOKS", (2, 3, 5, 8))

    def enough(ratio: QuickRatio) -> bool:
        looks.append(ratio.processes)
        return ratio.processes == 5

    assert quick_ratio(file, file, "spin", IMAGES, SHORT, 0, enough=enough).processes == 5
    assert looks == [2, 3, 5]
    monkeypatch.setattr(measuring, "QUICK_LOOKS", (2, 3))
    assert quick_ratio(file, file, "spin", IMAGES, SHORT, 0, enough=lambda ratio: False).processes == 3


# ---------------------------------------------------------------------------------------------- bad input


def test_more_threads_than_cores_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be timed"):
        choose_cores(10_000)


def test_cores_are_distinct_and_usable() -> None:
    allowed = os.sched_getaffinity(0)
    cores = choose_cores(len(allowed))
    assert set(cores) == allowed
    assert len(cores) == len(allowed)


def test_unknown_runtime_is_a_usage_error_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="did you mean onnxruntime"):
        measure(DENSE, None, "onnxruntme", IMAGES, SHORT, bench=Bench("cpu"), seed=0, progress=lambda *_: None)


@pytest.mark.parametrize("images", [IMAGES[:0], IMAGES[0], IMAGES.astype(np.float64)])
def test_images_of_the_wrong_form_are_a_data_error(images: np.ndarray) -> None:
    with pytest.raises(DataError, match="float32"):
        measure(DENSE, None, "onnxruntime", images, SHORT, bench=Bench("cpu"), seed=0, progress=lambda *_: None)


def test_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"nothing\.onnx"):
        latency_file(tmp_path / "nothing.onnx")


def test_missing_image_file_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    write_network(tmp_path / "network.onnx")
    file = latency_file(tmp_path / "network.onnx")
    request = LatencyRequest(runtime="onnxruntime", dense=file, compressed=None, images=str(tmp_path / "none.npy"))
    with pytest.raises(MeasurementError, match=r"none\.npy"):
        DEVICE.measure(request, progress=lambda *_: None)


def test_timing_process_needs_no_torch_for_the_shipped_runtimes() -> None:
    code = (
        "import sys, edgeprune.latency.runner\nfrom edgeprune import protocols\n"
        "[protocols.find('runtime', n) for n in ('onnxruntime', 'openvino')]\n"
        "print(sorted({'torch', 'onnx', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
