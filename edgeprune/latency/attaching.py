"""Which device a target is measured on: this machine, one that is reached by a plugin, or none.

Promise: a device is used only for the architecture that the target says, and its files must give there what they give
here before a figure of it counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprune import protocols
from edgeprune.errors import DeviceError, ParityError, UsageError
from edgeprune.latency.profiles import ANY_ARCHITECTURE, Profile
from edgeprune.latency.settings import RemoteConfig
from edgeprune.records import LatencyFile, Parity, RuntimeInfo

if TYPE_CHECKING:
    from edgeprune.types import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Images float32 (N, C, H, W), and whether they are real ones."""

    images: Floats
    inputs: Literal["real", "random"]


TOLERANCE = 1e-4
"""Of the larger of 1 and the largest logit, as for an export: the same float32 sums in another order."""

NOT_ATTACHED = "{name} is not this machine, and no device is attached (--host user@address)"


@contextmanager
def attached(profile: Profile, settings: RemoteConfig) -> Iterator[protocols.Device | None]:
    """The device of the target, connected; None where the target is elsewhere and no host was named.

    Errors: UsageError (a host for a target that is this machine, an unknown plugin), DeviceError (the device cannot be
    used, or is another architecture than the target says).
    """
    if profile.is_local:
        if settings.host is not None:
            raise UsageError(
                f"{profile.name} is this machine, and --host names another",
                hint="name the device's profile with --target, or leave --host out",
            )
        yield protocols.find("device", "local")
    elif settings.host is None:
        yield None
    elif profile.measured == "never":
        raise UsageError(f"nothing can be measured on {profile.name}: {profile.description}", hint="leave --host out")
    else:
        plugin: protocols.Device = protocols.find("device", settings.by)
        with plugin.attach(settings) as device:
            check_architecture(profile, device)
            yield device


def check_architecture(profile: Profile, device: protocols.Device) -> None:
    """DeviceError when the device says that it is another architecture than the target's."""
    machine = device.machine
    found = machine.system.split()[-1] if machine else ""
    if profile.architecture not in (ANY_ARCHITECTURE, found) and found:
        raise DeviceError(
            f"{device.name} is {found}, and the target {profile.name} is {profile.architecture}",
            where=machine.cpu if machine else "",
            hint="name the device's own profile with --target (a file of your own will do), or the right --host",
        )


def check_there(
    device: protocols.Device, file: LatencyFile, session: protocols.Session, pixels: Pixels, target: str
) -> tuple[Parity, Floats]:
    """Compare the file's logits on the device with those of the same runtime here; and the device's logits.

    Errors: ParityError when they differ by more than `TOLERANCE` of the
    largest logit or are not finite, and those of the device.
    """
    images = pixels.images
    here = np.concatenate([session.logits(images[at : at + 8]) for at in range(0, len(images), 8)])
    info, there = device.logits(file, session.info.name, images, threads=session.info.threads)
    if there.shape != here.shape:
        raise _strange(device, info, f"gives logits of shape {there.shape}, here of {here.shape}")
    difference = float(np.max(np.abs(there - here)))
    tolerance = TOLERANCE * max(1.0, float(np.max(np.abs(here))))
    if not difference <= tolerance:
        flips = int(np.sum(there.argmax(1) != here.argmax(1)))
        raise _strange(
            device, info, f"differs by {difference:.3g} in the logits (allowed: {tolerance:.0e}), {flips} labels"
        )
    parity = Parity(
        sha256=file.sha256,
        runtime=info,
        batch_sizes=(8,),
        max_difference=difference,
        tolerance=tolerance,
        same_labels=bool((there.argmax(1) == here.argmax(1)).all()),
        inputs=pixels.inputs,
        target=target,
        reference="this machine",
    )
    return parity, there


def _strange(device: protocols.Device, info: RuntimeInfo, what: str) -> ParityError:
    return ParityError(
        f"the file on {device.name} {what}",
        where=f"{info.name} {info.version}, {info.precision}, there",
        hint="nothing was measured there: use the same version of the runtime on both machines",
    )
