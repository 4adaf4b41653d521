"""Plain ssh to a device: run a command, send a file; and in words what went wrong.

Promise: the system's own `ssh` with the user's own configuration and known hosts. It never asks (BatchMode), never
trusts a host key by itself, and a connection that died is noticed. Whatever reaches the device's shell is quoted.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgeprune.errors import DeviceError

CONNECT_S = 10
ALIVE_S, ALIVE_COUNT = 5, 3
SSH_FAILED = 255
NO_SPACE = ("no space left", "disk quota exceeded")


class LostError(DeviceError):
    """The connection broke after it had been made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command on the device left."""

    code: int
    out: bytes
    err: str


@dataclass(frozen=True, slots=True)
class Connection:
    """How a host is reached; nothing is kept open between commands."""

    host: str
    port: int | None = None
    identity: Path | None = None
    options: tuple[str, ...] = ()

    def run(self, script: str, *, data: bytes | Path = b"", timeout_s: float = 60.0) -> Answer:
        """Run a POSIX shell script there with `data` on its stdin.

        Errors: DeviceError when the host cannot be reached or logged in to, LostError when the connection broke or
        nothing came back in time. A script that fails is an answer with its exit code.
        """
        try:
            if isinstance(data, bytes):
                answer = self._run(script, lambda child: child.communicate(data, timeout=timeout_s), subprocess.PIPE)
            else:
                with data.open("rb") as file:
                    answer = self._run(script, lambda child: child.communicate(timeout=timeout_s), file)
        except FileNotFoundError as error:
            raise DeviceError("ssh is not installed here", hint="install openssh-client") from error
        except subprocess.TimeoutExpired:
            raise LostError(
                f"{self.host} did not answer within {timeout_s:.0f} s", hint="raise --remote-timeout, or look at it"
            ) from None
        if answer.code == SSH_FAILED:
            raise self._unreachable(answer.err)
        return answer

    def send(self, file: Path, destination: str, *, timeout_s: float = 600.0) -> None:
        """Copy a file to `destination` there: written beside and renamed. DeviceError when there is no room."""
        folder, _, _ = destination.rpartition("/")
        beside = shlex.quote(destination + ".part")
        script = (
            f"umask 077; mkdir -p {shlex.quote(folder or '.')} && cat > {beside} "
            f"&& mv -f {beside} {shlex.quote(destination)} || {{ rm -f {beside}; exit 70; }}"
        )
        answer = self.run(script, data=file, timeout_s=timeout_s)
        if answer.code != 0:
            raise cannot_write(self.host, answer.err)

    def command(self, script: str) -> list[str]:
        """The whole command line: options first, and nothing after `--` can be one."""
        line = ["ssh", "-T", "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
        line += ["-o", f"ServerAliveInterval={ALIVE_S}", "-o", f"ServerAliveCountMax={ALIVE_COUNT}"]
        line += ["-p", str(self.port)] if self.port else []
        line += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"] if self.identity else []
        for option in self.options:
            line += ["-o", option]
        # The login shell may be any; exec, so that the runner's parent is the connection itself.
        return [*line, "--", self.host, f"exec sh -c {shlex.quote(script)}"]

    def _run(
        self, script: str, talk: Callable[[subprocess.Popen[bytes]], tuple[bytes, bytes]], source: int | IO[bytes]
    ) -> Answer:
        child = subprocess.Popen(
            self.command(script),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            out, err = talk(child)
        finally:  # Ctrl-C or a timeout: no ssh stays behind
            if child.poll() is None:
                child.kill()
                child.wait()
        return Answer(child.returncode, out, err.decode("utf-8", errors="replace").strip())

    def _unreachable(self, err: str) -> DeviceError:
        """What ssh's last words mean, and what to do."""
        words = err.lower()
        last = "\n  ".join(err.splitlines()[-3:])
        by_hand = shlex.join([part for part in self.command("")[:-1] if part not in ("-T", "-x")])
        for needles, what, hint in _MEANINGS:
            if any(needle in words for needle in needles):
                return DeviceError(f"{what}: {self.host}", where=last, hint=hint.format(by_hand=by_hand))
        return LostError(f"the connection to {self.host} was lost", where=last, hint="is it still on, and in reach?")


_MEANINGS = (
    (
        ("host key verification failed", "identification has changed"),
        "the device's host key is not known, or not the one that was known",
        "log in once by hand and compare the key: ssh HOST (a changed key: ssh-keygen -R HOST)",
    ),
    (
        ("permission denied", "too many authentication failures", "no supported authentication"),
        "the device refuses the login",
        "log in with a key: ssh-copy-id HOST, or name the key with --ssh-identity",
    ),
    (("could not resolve",), "no such host", "check --host; an address works, too"),
    (("connection refused",), "nobody listens there for ssh", "start its ssh server; check --ssh-port"),
    (
        ("timed out", "no route to host", "network is unreachable", "host is down"),
        "the device cannot be reached",
        "is it on, and in this network?",
    ),
    (
        ("bad configuration option", "keyword "),
        "ssh does not understand an option",
        "check --ssh-option",
    ),
)


def cannot_write(host: str, err: str) -> DeviceError:
    """Why a file could not be put there."""
    if any(words in err.lower() for words in NO_SPACE):
        return DeviceError(f"no space left on {host}", where=err, hint="free some, or choose another --remote-folder")
    return DeviceError(f"cannot write on {host}", where=err, hint="choose a --remote-folder that you may write to")
