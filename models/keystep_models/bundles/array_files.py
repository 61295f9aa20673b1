"""Arrays in one file, `.npz` as NumPy has it.

The same arrays give the same bytes, and a file that somebody else made is checked before anything
is allocated for it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keystep_capture.errors import DataError

MAX_FILE_BYTES: Final = 512 << 20
"""Size that such a file may have, packed and unpacked."""
MAX_ARRAYS: Final = 1024

_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)
_KINDS: Final = {"<f4", "<f8", "<i8", "|b1"}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of float32, float64, int64 or bool; OSError where the disk does not take it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, array in sorted(arrays.items()):
            packed = io.BytesIO()
            contiguous = np.ascontiguousarray(array)
            np.lib.format.write_array(packed, contiguous, version=(1, 0), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", _LONG_AGO), packed.getvalue())


def parse_arrays(content: bytes, source: str) -> dict[str, NDArray[Any]]:
    """The arrays in a file's content, read-only.

    Raises:
        DataError: It is no such file, or one that would unpack to more than `MAX_FILE_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            entries = file.infolist()
            if len(entries) > MAX_ARRAYS:
                raise DataError(f"{source}: expected at most {MAX_ARRAYS} arrays")
            if sum(entry.file_size for entry in entries) > MAX_FILE_BYTES:
                raise DataError(f"{source}: expected at most {MAX_FILE_BYTES} bytes unpacked")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise DataError(f"{source}: expected arrays that are stored, not compressed")
            arrays = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in arrays or name == entry.filename:
                    raise DataError(f"{source}: expected NAME.npy, each once")
                arrays[name] = _parse_array(file.read(entry), f"{source}, array {name[:60]!r}")
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source}: no arrays that can be read: {str(error)[:200]}") from error
    return arrays


def _parse_array(content: bytes, where: str) -> NDArray[Any]:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise DataError(f"{where}: expected NumPy's format 1.0")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.str not in _KINDS or is_fortran:
        raise DataError(f"{where}: expected float32, float64, int64 or bool, row by row")
    count = math.prod(shape)
    rest = len(content) - stream.tell()
    if len(shape) > 3 or count * dtype.itemsize != rest:
        raise DataError(f"{where}: shape {shape[:4]} does not fit {rest} bytes")
    return np.frombuffer(content, dtype, count, offset=stream.tell()).reshape(shape)
