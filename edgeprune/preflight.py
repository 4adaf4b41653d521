"""What a run needs is looked at before it starts: nobody waits an hour for "unknown attack".

Promise: nothing is loaded or written here, and each error names the setting, what is wrong with it and what is known.
"""

from __future__ import annotations

import fnmatch
import os
from fractions import Fraction

from edgeprune import protocols
from edgeprune.config import Config
from edgeprune.errors import UsageError
from edgeprune.estimated import calibration_for
from edgeprune.latency.profiles import Profile
from edgeprune.types import ModelBundle, Split


def check_settings(config: Config, profile: Profile) -> None:
    """The plugins are installed, the goal can be measured (or estimated), the cores and the torch device exist."""
    for kind, name in (("criterion", config.prune.criterion), ("attack", config.attack.attack)):
        protocols.find(kind, name)
    for name in config.latency.runtimes:
        protocols.find("runtime", name)
    if config.prune.goal().kind in ("speedup", "latency_ms") and not profile.is_local and config.remote.host is None:
        calibration_for(profile, config.latency)
    if config.recover.robust and config.recover.eps is None and config.attack.norm != "linf":
        raise UsageError(
            f"--recover {config.recover.recipe} trains against linf, and the attack is {config.attack.norm}",
            hint="say how far its adversary reaches: --recover-eps",
        )
    if profile.is_local:
        check_threads(config.latency.threads)
    check_device(config.run.device)


def check_threads(threads: int) -> None:
    """UsageError when this process may not use so many cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or threads
    if threads > cores:
        raise UsageError(f"{threads} threads cannot be timed on {cores} cores", hint=f"use --threads {cores} or fewer")


def check_device(name: str) -> None:
    """UsageError when torch cannot use the device."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"torch cannot use the device {name}", where=reason[:160], hint="use --device cpu, or mend torch's drivers"
        ) from error


def check_model(bundle: ModelBundle, config: Config) -> None:
    """Every --ignore and every --widths names a layer, and epsilon is smaller than the range of the pixels."""
    names = tuple(name for name, _ in bundle.module.named_modules() if name)
    patterns = [("ignore", pattern) for pattern in config.prune.ignore]
    patterns += [("widths", pattern) for pattern in config.prune.widths]
    for flag, pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) or name == pattern.rstrip("*.") for name in names):
            hint = protocols.did_you_mean(pattern, names)
            raise UsageError(
                f"--{flag} {pattern}: the network has no such layer",
                hint=hint if hint.endswith("?") else "`edgeprune inspect` lists the layers",
            )
    check_epsilon(bundle.preprocessing.bounds, config)


def check_epsilon(bounds: tuple[float, float], config: Config) -> None:
    """Epsilon is smaller than the range of the pixels: an attack that may do anything says nothing."""
    low, high = bounds
    for epsilon in (config.attack.eps, *config.boundary.curve):
        if Fraction(epsilon) >= high - low and config.attack.norm == "linf":
            flag = "--eps" if epsilon == config.attack.eps else "epsilon in --curve"
            raise UsageError(
                f"eps {epsilon} allows every image: pixels go from {low:g} to {high:g}",
                hint=f"eps is in pixel units: {epsilon}/255?" if high - low == 1 else f"set a smaller {flag}",
            )


def doubt_epsilon(bundle: ModelBundle, config: Config) -> str:
    """A warning when epsilon is far below what pixels can show; else empty."""
    low, high = bundle.preprocessing.bounds
    if config.attack.norm == "linf" and config.attack.epsilon < (high - low) / 1000:
        return f"eps {config.attack.eps} is next to nothing where pixels go from {low:g} to {high:g}: set --eps"
    return ""


def check_samples(split: Split, config: Config) -> None:
    """The test data has as many images as the settings ask for."""
    available, wanted, attacked = len(split.source.labels), config.data.samples or 0, config.attack.samples or 0
    for flag, number in (("samples", wanted), ("attack-samples", min(attacked, wanted) if wanted else attacked)):
        if number > available:
            raise UsageError(
                f"--{flag} asks for {number:,} images, {split.name} has {available:,}",
                hint="leave it out to use them all",
            )
