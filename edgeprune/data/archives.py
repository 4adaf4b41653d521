"""Arrays of an `.npz` file without holding the file in memory.

A member that was stored uncompressed (`numpy.savez`) is mapped where it lies. A compressed one is decompressed into
memory when it is small, else into a temporary file that is mapped. Pickled members are refused.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from edgeprune.errors import DataError

IN_MEMORY = 256 * 2**20
Array = np.ndarray[Any, np.dtype[Any]]


class Archive:
    """An open `.npz`; DataError for everything that is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        self.names = tuple(sorted(name.removesuffix(".npy") for name in self._zip.namelist()))

    def array(self, name: str) -> Array:
        """The array `name`: in memory when it is small, mapped from a file when it is not."""
        try:
            info = self._zip.getinfo(name + ".npy")
            with self._zip.open(info) as member:
                shape, fortran, dtype = _header(member)
                if dtype.hasobject:
                    raise self._unreadable(f"{name} holds Python objects, not numbers")
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                start = member.tell()
                if size + start != info.file_size:
                    raise self._unreadable(f"{name} is shorter or longer than its header says")
                if size <= IN_MEMORY:
                    flat = np.frombuffer(member.read(), dtype=dtype)
                    return flat.reshape(shape, order="F" if fortran else "C")
                order: Literal["F", "C"] = "F" if fortran else "C"
                if info.compress_type != zipfile.ZIP_STORED:
                    return self._spooled(member, size, dtype, shape, order)
                start += self._offset(info)
            return np.memmap(self.path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
            raise self._unreadable(str(error) or type(error).__name__) from error
        except (NotImplementedError, RuntimeError, SyntaxError) as error:
            raise self._unreadable(str(error)) from error

    def close(self) -> None:
        self._zip.close()

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where the member's data begins: its local header may be longer than the one in the directory."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
        name, extra = (int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
        return info.header_offset + 30 + name + extra

    def _spooled(
        self, member: IO[bytes], size: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["F", "C"]
    ) -> Array:
        """The rest of `member` in a temporary file that has no name and goes with the array."""
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size > free:
            raise self._unreadable(f"it unpacks to {size / 1e9:.1f} GB, and the temporary folder has {free / 1e9:.1f}")
        with tempfile.TemporaryFile() as spool:
            shutil.copyfileobj(member, spool, 2**20)
            spool.flush()
            return np.memmap(spool, dtype=dtype, mode="r", shape=shape, order=order)

    def _unreadable(self, reason: str) -> DataError:
        return DataError(
            f"cannot read {self.path}: {(reason.splitlines() or [''])[0]}", hint="write it again with numpy.savez"
        )


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)
