"""Reading the MATLAB files that some data sets keep their annotations in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xattn.errors import DataError, needs


def load_mat(path: Path, who: str) -> dict[str, Any]:
    """Variables of a MATLAB 5 file, arrays of length one unpacked.

    Args:
        path: the file.
        who: name of the data set, for messages.

    Raises:
        DataError: if the file is missing or damaged.
        MissingExtraError: without scipy.
    """
    needs("data", f"{who} (its annotations are MATLAB files)")
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return dict(loadmat(str(path), squeeze_me=True))
    except FileNotFoundError:
        raise DataError(f"{who}: expected '{path}', which does not exist.") from None
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{who}: '{path}' is damaged or no MATLAB 5 file ({error}).") from None
