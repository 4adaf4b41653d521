"""The exceptions that a user can meet, and the exit code that each one ends with.

Promise: every error says what went wrong, where, and what to do next, in a line or three. Bugs of ours are
not in this tree: they surface as ordinary Python exceptions.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every ``edgeprune`` command."""

    DONE = 0
    GATE_FAILED = 1
    USAGE = 2
    NO_RESULT = 3
    INCONCLUSIVE = 4
    INTERRUPTED = 130


class EdgepruneError(Exception):
    """What went wrong (`what`), where (`where`, may be empty) and what to do next (`hint`, may be empty)."""

    exit_code = ExitCode.NO_RESULT

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        return "\n  ".join(part for part in (self.what, self.where, self.hint) if part)


class UsageError(EdgepruneError):
    """The command line or the configuration asks for something that does not exist or makes no sense."""

    exit_code = ExitCode.USAGE


class SchemaError(UsageError):
    """A file of an older or newer schema than this version reads."""


class ModelError(EdgepruneError):
    """A model file that cannot be opened, or a network that cannot be used."""


class UntrustedModelError(ModelError):
    """A model file names code that the user has not admitted."""


class DataError(EdgepruneError):
    """Images or labels that do not fit the network, or are not what they say."""


class PruningError(EdgepruneError):
    """No plan could be made, or a plan does not fit the network."""


class RecoveryError(EdgepruneError):
    """Recovery diverged or could not run."""


class ExportError(EdgepruneError):
    """The network could not be exported, or a runtime refused the exported file."""


class ParityError(ExportError):
    """The exported file does not compute what the network computes."""


class RuntimeMissingError(EdgepruneError):
    """A runtime, or another optional package, is not installed."""


class DeviceError(EdgepruneError):
    """A device cannot be reached, lacks what a measurement needs, or was lost on the way."""


class MeasurementError(EdgepruneError):
    """A measurement broke off before it had a result."""


class OutputError(EdgepruneError):
    """A result could not be written: no permission, no space."""


class InconclusiveError(EdgepruneError):
    """The measurement ran and does not support any conclusion."""

    exit_code = ExitCode.INCONCLUSIVE
