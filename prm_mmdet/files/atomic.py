"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Union


@contextlib.contextmanager
def replacing(path: Union[str, Path]) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` at the end of the ``with`` block.

    If the ``with`` block raises or the process is killed, ``path`` keeps its content.
    Folders on the way to ``path`` are made.

    Args:
        path: The file to write.

    Yields:
        A file under the temporary name ``<path>.tmp``, open for writing.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.tmp')
    try:
        with open(partial, 'wb') as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(path: Union[str, Path], content: Union[bytes, str]) -> None:
    """Write bytes, or text as UTF-8, whole or not at all.

    Args:
        path: The file to write. Folders on the way to it are made.
        content: What to write.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
