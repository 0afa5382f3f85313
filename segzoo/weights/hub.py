"""Weights on the Hugging Face hub: `hf:owner/name`, pinned to a commit and checked by checksum.

Downloading and keeping is left to `huggingface_hub` and its cache (the extra `hub`), so that files
are shared with whatever else uses it, and its settings hold: `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`. A commit determines every byte of a repository; so does the id this module
returns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from segzoo.errors import SegzooError

DEFAULT_FILE = "model.safetensors"
DEFAULT_REVISION = "main"
_ID = re.compile(
    r"(?:hf|hf-hub|hf_hub):(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/#@]+))?"
    r"(?:/(?P<file>[^#@]+))?(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HubId:
    """A file on the hub, written `hf:owner/name[@revision][/file][#sha256=...]`.

    Attributes:
        repository: `owner/name`.
        revision: a branch, a tag or a commit; a slash in it is written `%2F`.
        file: the path in the repository.
        sha256: what the file must have, in lower case, or None.
    """

    repository: str
    revision: str = DEFAULT_REVISION
    file: str = DEFAULT_FILE
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId:
        """Reads an id; the prefixes `hf-hub:` and `hf_hub:` are understood too.

        Raises:
            SegzooError: for anything else.
        """
        found = _ID.fullmatch(text)
        if found is None:
            raise SegzooError(
                f"{text!r} is no hub id; expected hf:owner/name[@revision][/file][#sha256=...]."
            )
        checksum = found["sha256"]
        return cls(
            found["repository"],
            unquote(found["revision"] or DEFAULT_REVISION),
            found["file"] or DEFAULT_FILE,
            checksum.lower() if checksum else None,
        )

    def __str__(self) -> str:
        checksum = f"#sha256={self.sha256}" if self.sha256 else ""
        return f"hf:{self.repository}@{quote(self.revision, safe='')}/{self.file}{checksum}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, so that the id always means the same bytes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def stands_for(self, other: HubId) -> bool:
        """Whether this pinned id is what the other, perhaps floating, one may once have meant."""
        return self.pinned and other == dataclasses.replace(
            self,
            revision=self.revision if other.pinned else other.revision,
            sha256=other.sha256,
        )


def is_id(text: str) -> bool:
    """Whether a text is meant as a hub id."""
    return text.startswith(("hf:", "hf-hub:", "hf_hub:"))


def fetch(wanted: HubId) -> tuple[Path, HubId]:
    """Returns a file of the hub, downloaded unless it is in the cache.

    A floating revision is looked up on the hub, or, where that cannot be reached, is the newest one
    in the cache. The file is checked against the checksum the hub gave for it, however long it has
    been in the cache, and against `wanted.sha256`.

    Args:
        wanted: the file.

    Returns:
        Its path in the cache, and its id with the revision pinned to a commit.

    Raises:
        SegzooError: when `huggingface_hub` is missing, when there is no such repository, revision
            or file, when it is neither in the cache nor reachable, or when a checksum is wrong.
    """
    path = Path(_download(wanted))
    commit = path.parts[-1 - len(wanted.file.split("/"))]
    pinned = dataclasses.replace(wanted, revision=commit)
    recorded = _recorded_checksum(path, pinned)
    if recorded is not None and not _matches(path, recorded):
        _remove(path)
        raise SegzooError(
            f"{pinned} was damaged on its way or on the disk: its checksum is not the hub's "
            f"({recorded}); the file is removed from the cache, so try again."
        )
    if wanted.sha256 is not None and not _matches(path, wanted.sha256):
        raise SegzooError(
            f"{pinned} has another sha256 than the one asked for: {_sha256(path)}. "
            "The hub has the file so."
        )
    return path, pinned


def _download(wanted: HubId) -> str:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise SegzooError(
            f"{wanted} is on the Hugging Face hub, which needs huggingface_hub; "
            "pip install 'segzoo[hub]'."
        ) from error
    name = f"hf:{wanted.repository}"
    try:
        return huggingface_hub.hf_hub_download(
            wanted.repository, wanted.file, revision=wanted.revision, library_name="segzoo"
        )
    except errors.GatedRepoError as error:
        reason = f"{name} is gated: accept its terms on the hub and set HF_TOKEN"
        raise SegzooError(f"{reason}.") from error
    except errors.RepositoryNotFoundError as error:
        reason = f"the hub has no repository {wanted.repository!r}, or it is private"
        raise SegzooError(f"{reason} (then set HF_TOKEN).") from error
    except errors.RevisionNotFoundError as error:
        raise SegzooError(f"{name} has no revision {wanted.revision!r}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise SegzooError(
            f"{wanted} is not in the cache, and the hub cannot be reached."
        ) from error
    except errors.EntryNotFoundError as error:
        raise SegzooError(f"{name} has no file {wanted.file!r}.{_files(wanted)}") from error
    except errors.HFValidationError as error:
        raise SegzooError(f"{name} is no name of a repository: {_line(error)}.") from error
    except Exception as error:  # what comes of networks and disks has no common class there
        raise SegzooError(f"{wanted} cannot be downloaded: {_line(error)}.") from error


def _files(wanted: HubId) -> str:
    """` It has a.safetensors, b.bin.` for what of a repository may be weights."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(wanted.repository, revision=wanted.revision)
    except Exception:  # the error at hand is worth more than this help
        return ""
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
    names = [name for name in files if name.endswith(suffixes)]
    return f" It has {', '.join(names[:6])}." if names else ""


def _recorded_checksum(path: Path, pinned: HubId) -> str | None:
    """The hub's checksum of a file in the cache: sha256 of large ones, git's sha1 of small ones."""
    if path.is_symlink():  # to the content, whose name is its checksum
        name = os.path.basename(os.readlink(path))
        return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None
    import huggingface_hub

    try:  # a cache without links has forgotten it
        (found,) = huggingface_hub.HfApi().get_paths_info(
            pinned.repository, [pinned.file], revision=pinned.revision
        )
    except Exception:  # not reachable now; the file was checked when it came
        return None
    lfs: Any = getattr(found, "lfs", None)
    return lfs.sha256 if lfs is not None else getattr(found, "blob_id", None)


def _matches(path: Path, checksum: str) -> bool:
    if len(checksum) == 64:
        return _sha256(path) == checksum
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == checksum


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
