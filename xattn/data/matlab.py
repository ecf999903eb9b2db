"""Reading the MATLAB files that some data sets keep their annotations in."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from xattn.errors import DataError, needs, reason_of
from xattn.files import read_regular

FILE_LIMIT = 64 * 2**20  # bytes
# All that scipy is known to raise on damaged files.
_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, MemoryError, OverflowError),
    *(EOFError, RecursionError, struct.error, zlib.error),
)


def load_mat(path: Path, title: str) -> dict[str, Any]:
    """Variables of a MATLAB 5 file, arrays of length one unpacked.

    Args:
        path: the file.
        title: name of the data set, for messages.

    Raises:
        DataError: if the file is missing or damaged.
        MissingExtraError: without scipy.
    """
    needs("data", f"{title} (its annotations are MATLAB files)")
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return dict(loadmat(io.BytesIO(read_regular(path, FILE_LIMIT)), squeeze_me=True))
    except FileNotFoundError:
        raise DataError(f"{title}: expected '{path}', which does not exist.") from None
    except (*_DAMAGE, MatReadError) as error:
        raise DataError(f"{title}: '{path}' is damaged or no MATLAB 5 file ({reason_of(error)}).") from None
