"""`edgeprune certify`: radii in which the smoothed classifier made of an exported file cannot be fooled."""

from __future__ import annotations

from pathlib import Path

from edgeprune import preflight
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import UsageError
from edgeprune.files import sha256_of
from edgeprune.records import Certified, Noise
from edgeprune.single import form_of, open_file, split_of


def certify_file(file: Path, config: Config, console: Console) -> Certified:
    """Randomised smoothing of `file` on the test data, by the settings of [certify].

    Errors: UsageError (no data, no such file), ModelError (a file that is no classifier), those of the runtime.
    """
    from edgeprune.robustness.evaluate import attack_subset
    from edgeprune.robustness.smoothing import certify_split

    if config.data.test is None:
        raise UsageError("certifying needs test data", hint="give --test")
    preflight.check_threads(config.latency.threads)
    runtime, session = open_file(file, config.latency.threads)
    wanted, seed = config.certify, config.run.seed
    subset = attack_subset(split_of(config, form_of(file, config, session)), wanted.samples, seed)
    noise = Noise(sigma=wanted.sigma, guesses=wanted.guesses, draws=wanted.draws, alpha=wanted.alpha, seed=seed)
    with console.task(f"certifying in {runtime.name}") as progress:
        return certify_split(session, subset, noise, wanted.radii, sha256_of(file), progress)
