"""The environment record and doctor: what was observed, and advice that follows from it alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from edgeprune import environment as room
from edgeprune.environment import DoctorReport, Noise, advise, doctor, environment
from edgeprune.latency import machine, precision
from edgeprune.latency.precision import RuntimePrecision, classify, observe
from edgeprune.records import Environment


@pytest.fixture(scope="module")
def report() -> DoctorReport:
    return doctor(1)


def quiet(**changes: object) -> DoctorReport:
    """A report that asks for nothing, but for the changes."""
    fields = {
        "environment": environment(),
        "missing": (),
        "usable_cores": (0, 1),
        "cpu_quota": None,
        "governor": "performance",
        "threads": 1,
        "torch_threads": 1,
        "runtimes": (RuntimePrecision(name="onnxruntime", version="1", ours="float32", default="float32"),),
        "timer_resolution_ns": 40,
        "load_average": 0.1,
        "noise": Noise(spread=0.01, preempted=0.0, steal=0.0),
        "advice": (),
    }
    return DoctorReport.model_validate({**fields, **changes})


def test_environment_names_the_versions_and_round_trips() -> None:
    found = environment()
    assert found.packages["numpy"] == np.__version__
    assert found.packages["onnxruntime"] == version("onnxruntime")
    assert found.cores >= 1
    assert found.cpu
    assert Environment.model_validate_json(found.to_json()) == found


def test_environment_loads_no_framework() -> None:
    code = (
        "import sys\nfrom edgeprune.environment import environment\nenvironment()\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_processor_is_read_from_x86_and_arm_files_and_is_empty_elsewhere(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text(
        "processor\t: 0\nmodel name\t: A CPU: v2\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t: none\n"
    )
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n")
    assert machine.cpuinfo(x86) == ("A CPU: v2", frozenset({"fpu", "avx2", "amx_bf16"}))
    assert machine.cpuinfo(arm) == ("Raspberry Pi 5 Model B Rev 1.0", frozenset({"fp", "asimd", "asimddp"}))
    assert machine.cpuinfo(tmp_path / "none") == ("", frozenset())


def test_missing_package_is_absent_and_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PACKAGES", (*room.PACKAGES, "no-such-package"))
    assert "no-such-package" not in environment().packages
    assert [advice.what for advice in advise(quiet(missing=("no-such-package",)))] == [
        "no-such-package is not installed"
    ]


def rounded(bits: int) -> np.ndarray:
    """The small network's output as if its operands had `bits` bits of mantissa."""

    def cut(values: np.ndarray) -> np.ndarray:
        exponent = np.frexp(values)[1]
        return np.ldexp(np.round(np.ldexp(values.astype(np.float64), bits - exponent)), exponent - bits)

    windows = np.lib.stride_tricks.sliding_window_view(precision._images(), (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", cut(windows), cut(precision._weight())).reshape(1, -1)


@pytest.mark.parametrize(
    ("bits", "name"), [(24, "float32"), (11, "float16"), (8, "bfloat16"), (3, "lower than bfloat16")]
)
def test_precision_is_told_by_the_error_of_the_result(bits: int, name: str) -> None:
    assert classify(rounded(bits)) == name


def test_shipped_runtimes_are_seen_to_compute_in_float32_with_our_settings(report: DoctorReport) -> None:
    assert {one.name for one in report.runtimes} >= {"onnxruntime", "openvino"}
    assert {one.ours for one in report.runtimes if one.name in precision.DEFAULTS} == {"float32"}


def test_openvino_default_follows_the_processor(report: DoctorReport) -> None:
    """It is bfloat16 where the processor has it: the reason for setting the precision."""
    default = next(one.default for one in report.runtimes if one.name == "openvino")
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(report.environment.cpu_features)
    assert default in (("bfloat16",) if has_bf16 else ("float32", "float16"))


def test_runtime_that_fails_is_reported_and_doctor_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> np.ndarray:
        raise RuntimeError("illegal instruction\nand more")

    monkeypatch.setitem(precision.DEFAULTS, "onnxruntime", fail)
    seen = observe("onnxruntime", 1, tmp_path)
    assert (seen.ours, seen.failure) == (None, "RuntimeError: illegal instruction")
    assert "does not work here" in advise(quiet(runtimes=(seen,)))[0].what
    assert observe("no-such-runtime", 1, tmp_path).failure.startswith("unknown runtime")


def test_doctor_reports_what_it_observed(report: DoctorReport) -> None:
    assert report.missing == ()
    assert report.threads == 1
    assert len(report.usable_cores) >= 1
    assert report.torch_threads is not None
    assert 0 < report.timer_resolution_ns < 1_000_000
    assert report.noise.spread >= 0
    assert 0 <= report.noise.preempted <= 1
    assert DoctorReport.model_validate_json(report.to_json()) == report


def test_quiet_machine_gets_no_advice() -> None:
    assert advise(quiet()) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 3}, "3 threads on 2 usable cores"),
        ({"cpu_quota": 0.5}, "the time of 0.5 cores"),
        ({"governor": "powersave"}, "governor powersave"),
        ({"load_average": 3.0}, "load average 3.0"),
        ({"noise": Noise(spread=0.5, preempted=0.0, steal=None)}, "p90 50% over p50"),
        ({"noise": Noise(spread=0.0, preempted=0.3, steal=None)}, "30% of repeats preempted"),
        ({"noise": Noise(spread=0.0, preempted=0.0, steal=0.2)}, "hypervisor gave 20%"),
        ({"runtimes": (RuntimePrecision(name="openvino", version="1", ours="bfloat16"),)}, "computes in bfloat16"),
    ],
)
def test_each_trouble_gets_its_advice_and_remedy(changes: dict[str, object], words: str) -> None:
    advice = advise(quiet(**changes))
    assert len(advice) == 1
    assert words in advice[0].what
    assert advice[0].remedy
