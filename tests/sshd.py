"""A real sshd on loopback, as an ordinary process with keys of its own: what a board would run."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=os.pathsep.join(("/usr/sbin", "/usr/local/sbin", os.environ.get("PATH", ""))))
MISSING = "openssh-server is not installed: no sshd, or no ssh" if not (SSHD and shutil.which("ssh")) else ""


@dataclass(frozen=True)
class Server:
    """Where it listens, and what a client needs to get in."""

    port: int
    identity: Path
    known_hosts: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def host(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    def flags(self) -> tuple[str, ...]:
        """The command line's way in."""
        options = f"UserKnownHostsFile={self.known_hosts},GlobalKnownHostsFile=/dev/null"
        return (
            *("--host", self.host, "--ssh-port", str(self.port)),
            *("--ssh-identity", str(self.identity), "--ssh-option", options),
        )


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Run sshd until the block ends. RuntimeError with its log when it does not come up."""
    assert SSHD is not None
    for name in ("host_key", "client_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
    log = folder / "sshd.log"
    command = [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(log)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(port, process, log)
        yield Server(port, folder / "client_key", folder / "known_hosts", log, process)
    finally:
        process.terminate()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"sshd does not listen: {log.read_text() if log.exists() else 'no log'}")
