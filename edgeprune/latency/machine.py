"""What a machine says of itself: processor, cores, memory, heat. Shared by this machine and devices over ssh.

Promise: needs nothing but Python 3.8's standard library, since this very module also runs on a device. What the
system does not tell is None or empty, never guessed.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
"""Processor flags (x86 and Arm names, as Linux spells them) that decide which kernels a runtime takes."""

CPUS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")
PI_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
PI_NOW = 0xF  # bits of "under-voltage, frequency capped, throttled, soft limit" that hold at this moment


def cpuinfo(path: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first processor; empty where there is no such file (not Linux)."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or fields.get("Model") or fields.get("Hardware") or ""
    return model, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def processor() -> str:
    """The processor's name: the kernel's word, else the board's device tree, else the architecture."""
    board = _text(Path("/proc/device-tree/model")).rstrip("\0")
    return cpuinfo()[0] or board or platform.processor() or platform.machine()


def fastest_cores(threads: int) -> tuple[int, ...]:
    """One core a thread out of those that this process may use; empty where the system cannot pin.

    The fastest cores come first (big before little); among equals the highest numbers, since interrupts and
    other people's work gather on the lowest. ValueError when there are too few.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise ValueError(f"{threads} threads cannot be timed on {len(allowed)} cores")
    return tuple(sorted(sorted(allowed, key=lambda core: (_capacity(core), core))[-threads:]))


def peak_rss_bytes() -> int:
    """Peak resident memory of this process. `ru_maxrss` would do, but on Linux it survives exec: a worker started
    by a large process would report that process's peak."""
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def heat(cores: tuple[int, ...]) -> dict[str, Any]:
    """How warm and how fast the machine is now.

    `celsius`: the warmest thermal zone. `mhz`: the slowest of `cores`; `most_mhz`: what the fastest of them may reach.
    `throttles`: how often the kernel has throttled them since boot (x86). `throttled`: the board says that it is
    throttled, capped or short of voltage right now (Raspberry Pi). None where the system does not tell.
    """
    zones = [_number(path) for path in THERMAL.glob("thermal_zone*/temp")]
    speeds = [_number(CPUS / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    limits = [_number(CPUS / f"cpu{core}/cpufreq/cpuinfo_max_freq") for core in cores]
    counts = [_number(CPUS / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
    warmest, slowest = _largest(zones), [speed for speed in speeds if speed]
    most, throttles, pi = _largest(limits), _largest(counts), _pi_throttled()
    return {
        "celsius": None if warmest is None else warmest / 1000,
        "mhz": min(slowest) / 1000 if slowest else None,
        "most_mhz": None if most is None else most / 1000,
        "throttles": None if throttles is None else int(throttles),
        "throttled": pi,
    }


def governor() -> str | None:
    """The clock's governor of the first core."""
    return _text(CPUS / "cpu0/cpufreq/scaling_governor").strip() or None


def memory_bytes() -> int | None:
    """Size of the machine's memory."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _pi_throttled() -> bool | None:
    word = _text(PI_THROTTLED).strip()
    if not word:
        try:
            asked = subprocess.run(["vcgencmd", "get_throttled"], stdout=subprocess.PIPE, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return None
        word = asked.stdout.decode("ascii", "replace").partition("=")[2].strip()
    try:
        return bool(int(word, 16) & PI_NOW)
    except ValueError:
        return None


def _capacity(core: int) -> float:
    """Relative speed of a core as the kernel states it; 0 where it states nothing."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        value = _number(CPUS / f"cpu{core}" / name)
        if value is not None:
            return value
    return 0


def _largest(values: list[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return max(told) if told else None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
