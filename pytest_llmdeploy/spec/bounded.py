"""Reading a file that somebody names, whatever it is."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_bounded(path: Path, most: int) -> bytes:
    """What is in a file, but one byte more than `most` at most.

    Raises:
        OSError: when it can't be read, or is none: a pipe or a device may never come to an end.
        ValueError: when `path` can't be the name of one.
    """
    # A pipe that nobody writes to would not even open.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        kind = os.fstat(number).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is not a file")
        return file.read(most + 1)
