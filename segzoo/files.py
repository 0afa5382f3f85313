"""Files that are either whole or absent, and JSON read from them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from segzoo.errors import SegzooError


def write_atomically(path: Path | str, content: bytes) -> None:
    """Writes a file under a temporary name beside `path` and renames it: never half a file.

    Missing parent folders are made.

    Raises:
        SegzooError: when the folder cannot be written to.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private; ours need not be
        os.replace(temporary, path)
    except OSError as error:
        raise SegzooError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_object(path: Path | str) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        SegzooError: names the file when it is missing, unreadable, not JSON or not an object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
        raise SegzooError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise SegzooError(f"{path} holds a {type(found).__name__}; expected an object.")
    return found
