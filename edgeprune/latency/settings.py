"""Settings of timing, and of the device that it is done on: two tables of `edgeprune.toml`."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from edgeprune.quantities import Milliseconds
from edgeprune.sections import Place, Section, setting


class LatencyConfig(Section):
    runtimes: tuple[str, ...] = setting(("onnxruntime", "openvino"), "Runtimes to export for; goals use the first.")
    threads: int = setting(1, "Threads of the runtime.", gt=0)
    batch_size: int = setting(1, "Images an inference.", gt=0)
    duration: Milliseconds | None = setting(
        None, 'Time for so long a runtime, such as "20 s" (default: until the interval is narrow).', flag="for"
    )
    runs: int | None = setting(None, "Time each file at least so often, and no longer.", gt=0)
    precision: float = setting(
        0.04, "Width of the speed-up's interval that is narrow enough to stop.", flag="timing-precision", gt=0, lt=1
    )
    processes: int | None = setting(
        None,
        "Fresh processes to time in (default: 5, then 8, 12 until narrow enough).",
        flag="timing-processes",
        gt=0,
    )
    blocks: int = setting(12, "Interleaved blocks of each file a process.", flag="timing-blocks", gt=1)
    block_ms: float = setting(50.0, "Length of a block (ms).", flag="timing-block-ms", gt=0)
    control_limit: float = setting(
        0.1, "Widest interval of dense against dense that supports a verdict.", flag="timing-control-limit", gt=0
    )

    @field_validator("runtimes")
    @classmethod
    def _named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("must name at least one runtime")
        if len(set(names)) < len(names):
            raise ValueError("must name each runtime once")
        return names

    @model_validator(mode="after")
    def _one_length(self) -> LatencyConfig:
        if self.duration is not None and (self.runs is not None or self.processes is not None):
            raise ValueError("--for sets the length by itself: leave out --runs and --timing-processes")
        return self


class RemoteConfig(Section):
    host: str | None = setting(None, "Measure on this device over ssh: user@host, or a name of your ssh configuration.")
    by: str = setting("ssh", "How the device is reached: a device plugin.", flag="reach-by")
    port: int | None = setting(None, "Port of its ssh server (default: ssh's own).", flag="ssh-port", gt=0, lt=65536)
    identity: Place | None = setting(None, "Private key to log in with (default: ssh's own).", flag="ssh-identity")
    options: tuple[str, ...] = setting((), "Options for ssh -o, such as ProxyJump=gateway.", flag="ssh-option")
    python: str = setting("python3", "Python there (3.8 or newer, with numpy and the runtime).", flag="remote-python")
    folder: str = setting(
        ".cache/edgeprune", "Folder there; what is put into it is removed again.", flag="remote-folder"
    )
    samples: int = setting(256, "Test images that are classified on the device, too.", flag="remote-samples", gt=0)
    timeout: Milliseconds = setting(600_000.0, "Longest that one timing process there may take.", flag="remote-timeout")

    @field_validator("host")
    @classmethod
    def _no_option(cls, host: str | None) -> str | None:
        if host is not None and (host[:1] in ("", "-") or not host.isprintable() or len(host.split()) != 1):
            raise ValueError("must be user@host, or a name of your ssh configuration")
        return host
