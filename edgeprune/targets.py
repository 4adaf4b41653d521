"""What `edgeprune targets` does beside listing: probe a device, and calibrate the estimates of a target on it.

Promise: every number that comes out says how it was found; a profile that is written is read back first.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeprune import protocols
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import MeasurementError, UsageError
from edgeprune.latency.attaching import attached
from edgeprune.latency.estimate import Anchor, calibrate
from edgeprune.latency.kept import Kept
from edgeprune.latency.machine import processor
from edgeprune.latency.measure import latency_file, p50_alone
from edgeprune.latency.profiles import Figure, Profile, load_profile
from edgeprune.latency.writing import write_profile

PROBED_S = 30 * 24 * 3600.0


ACTIONS = ("show", "probe", "calibrate")


def profile_for(what: str, name: str | None, config: Config, write: Path | None, console: Console) -> Profile:
    """The profile that a command asks for: `what` is an action on the target `name`, or the name of one to show.

    Written to `write` where that is given. Errors: UsageError (an unknown target, an action without one).
    """
    if what not in ACTIONS:
        if name is not None:
            raise UsageError(f"no such action: {what}", hint=protocols.did_you_mean(what, ACTIONS))
        what, name = "show", what
    if name is None and what == "probe":
        name = "cpu"
    if name is None:
        raise UsageError(f"{what} what?", hint=f"name a target: edgeprune targets {what} raspberry-pi-5")
    if what == "calibrate" and write is None:
        raise UsageError("a calibration needs a file to go to", hint="give --write board.toml")
    profile = {"show": _shown, "probe": probe, "calibrate": calibrated}[what](name, config, console)
    if write is not None:
        write_profile(profile, write)
        console.say(f"wrote {write}: use it with --target {write}")
    return profile


def _shown(target: str, config: Config, console: Console) -> Profile:
    return load_profile(target)


def probe(target: str, config: Config, console: Console) -> Profile:
    """The profile of `target`, with what its machine says of itself and what was measured on it just now.

    The measurements of this machine are kept for a month, by processor. Errors: UsageError (a target elsewhere without
    --host), DeviceError, MeasurementError.
    """
    profile = load_profile(target)
    with attached(profile, config.remote) as device, console.task(f"probing {profile.name}"):
        if device is None:
            raise UsageError(f"{profile.name} is not this machine", hint="name the device with --host user@address")
        found = _probe_here(device) if profile.is_local else device.probe()
    return _probed(profile, found, "measured-local" if profile.is_local else "measured-remote")


def calibrated(target: str, config: Config, console: Console) -> Profile:
    """The profile with a calibration of its estimates, fitted and tested on the device, for the first runtime.

    Errors: those of the device and of the measurements.
    """
    from edgeprune.latency.anchors import FITTED, TESTED, name_of, write_anchor
    from edgeprune.latency.operators import work_of

    profile, settings = load_profile(target), config.latency
    runtime: protocols.Runtime = protocols.find("runtime", settings.runtimes[0])
    anchors: list[Anchor] = []
    with (
        attached(profile, config.remote) as device,
        tempfile.TemporaryDirectory(prefix="edgeprune-") as name,
        console.task(f"calibrating {profile.name} in {runtime.name}") as progress,
    ):
        if device is None:
            raise UsageError(f"{profile.name} is not this machine", hint="name the device with --host user@address")
        for number, (width, resolution) in enumerate((*FITTED, *TESTED)):
            progress(name_of(width, resolution), number / len((*FITTED, *TESTED)))
            graph = write_anchor(Path(name), width, resolution)
            path, *others = runtime.convert(graph, graph.with_suffix(runtime.suffix))
            images = np.random.default_rng(number).random((4, 3, resolution, resolution), dtype=np.float32)
            p50 = p50_alone(latency_file(path, tuple(others)), runtime.name, images, settings, config.run.seed, device)
            work = work_of(graph, (3, resolution, resolution))
            anchors.append(Anchor(name=name_of(width, resolution), work=work, p50_ms=p50))
        where = device.machine.cpu if device.machine else "this machine"
    source = f"edgeprune targets calibrate, on {where} ({datetime.now(UTC).date()}), {runtime.name} {runtime.version()}"
    fitted, tested = anchors[: len(FITTED)], anchors[len(FITTED) :]
    found = calibrate(fitted, tested, runtime.name, settings.threads, source)
    return profile.model_copy(update={"estimates": {**profile.estimates, runtime.name: found}})


def _probe_here(device: protocols.Device) -> dict[str, Any]:
    """This machine's probe, kept for a month: the machine stays what it is."""
    kept = Kept.of("this machine", processor(), sys.version, {"do": "probe"})
    found = kept.read(0, longest_s=PROBED_S)
    if found is None:
        found = {**device.probe(), "date": str(datetime.now(UTC).date())}
        kept.write(0, found)
    return found


def _probed(profile: Profile, found: dict[str, Any], kind: Literal["measured-local", "measured-remote"]) -> Profile:
    """The profile with what was found; its own figures of the same name give way."""
    date = found.get("date", datetime.now(UTC).date())
    try:
        source = f"edgeprune targets probe, on {found['cpu']} ({date})"
        rates = (
            ("float32 matrix product, one core", found["gflops"], "GFLOPS", source),
            ("memory copy, one core", found["copy_gb_s"], "GB/s", source),
        )
        told = f"{source}, as the system says"
        sizes = tuple((f"{name} cache", size / 1024, "KiB", told) for name, size in found["caches"].items())
        figures = [
            Figure(name=name, value=value, unit=unit, kind=kind, source=said)
            for name, value, unit, said in (*rates, *sizes)
        ]
        features = tuple(found["cpu_features"])
        cores, architecture = int(found["cores"]), str(found["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise MeasurementError(f"the probe gave an answer that is none: {error}") from error
    names = {figure.name for figure in figures}
    return profile.model_copy(
        update={
            "architecture": architecture,
            "cores": cores,
            "features": features,
            "figures": (*(figure for figure in profile.figures if figure.name not in names), *figures),
        }
    )
