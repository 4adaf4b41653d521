"""What is sent to a device: the runner as one Python file, and the files of a job under names made of their digests.

Promise: the same modules give the same bytes, so that a runner that is there already is not sent again.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgeprune.records import LatencyFile

MODULES = ("board", "increments", "machine", "probing", "serving", "timing")
_ENTRY = "import sys\nfrom edgeprune.latency.board import main\nsys.exit(main())\n"


@dataclass(frozen=True, slots=True)
class Sent:
    """A file here, its sha256, and its path there."""

    here: Path
    sha256: str
    there: str


def write_runner(folder: Path) -> Path:
    """Write the runner to `folder` as a zip that Python runs: the timing modules of this very edgeprune."""
    path = folder / "runner.pyz"
    sources = {f"edgeprune/latency/{name}.py": Path(__file__).with_name(f"{name}.py").read_bytes() for name in MODULES}
    empty = {"edgeprune/__init__.py": b"", "edgeprune/latency/__init__.py": b""}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted({**sources, **empty, "__main__.py": _ENTRY.encode()}.items()):
            archive.writestr(zipfile.ZipInfo(name), content)  # a fixed date: the same sources, the same bytes
    return path


def sent_files(file: LatencyFile, folder: str) -> tuple[Sent, ...]:
    """The file and its companions, side by side in a folder of their own: a graph finds its weights by name."""
    digests = "".join((file.sha256, *(digest for _, digest in file.companions)))
    place = f"{folder}/{hashlib.sha256(digests.encode()).hexdigest()[:24]}"
    every = ((file.path, file.sha256), *file.companions)
    return tuple(Sent(Path(path), digest, f"{place}/{Path(path).name}") for path, digest in every)


def sent_alone(path: Path, sha256: str, folder: str) -> Sent:
    """A file that needs no neighbours: the runner, the images."""
    return Sent(path, sha256, f"{folder}/{sha256[:24]}{path.suffix}")
