"""A place in an object store, by its URL."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unperturb.errors import MissingExtraError, SpecError

__all__ = ["Remote", "check_url", "failures", "is_url", "open_remote", "words"]


@dataclass(frozen=True)
class Remote:
    """A place in an object store."""

    url: str
    files: Any  # fsspec.AbstractFileSystem
    root: str

    def path(self, name: str) -> str:
        """Where a file of this place is, as the store names it."""
        return f"{self.root.rstrip('/')}/{name}"

    @property
    def local(self) -> bool:
        """Whether it is a folder after all (``file://``)."""
        named = self.files.protocol
        return "file" in ((named,) if isinstance(named, str) else tuple(named))


def is_url(where: str | Path) -> bool:
    """Whether this names an object store rather than a folder.

    Example:
        >>> is_url("s3://bucket/runs"), is_url("runs/tpap")
        (True, False)
    """
    return "://" in str(where)


def check_url(url: str) -> None:
    """Refuse a URL that cannot be opened, before any work is done for it.

    Raises:
        SpecError: It is none, or of an unknown kind.
        MissingExtraError: The package for its kind of store is not there.
    """
    open_remote(url)


def open_remote(url: str) -> Remote:
    """The place a URL names; nothing is read or written there.

    Raises:
        SpecError: It is no URL, or of an unknown kind.
        MissingExtraError: The package for its kind of store is not there.
    """
    if not is_url(url):
        raise SpecError(
            f"{url!r} is no URL", expected="an object store, such as s3://bucket/runs/tpap"
        )
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(
            "fsspec", extra="objects", purpose="An object store", detail=str(error)
        ) from error
    kind = url.partition("://")[0]
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
        raise MissingExtraError(
            package.get(kind, "fsspec"), extra="objects", purpose=f"{kind}://", detail=str(error)
        ) from error
    except ValueError as error:
        raise SpecError(
            f"The URL {url!r} cannot be opened ({error})",
            expected="a kind of store that fsspec knows: s3, gs, az, file, memory ...",
        ) from error
    # Stores list from a cache, and another writer may have been there since.
    files.invalidate_cache()
    return Remote(url, files, root)


def failures() -> tuple[type[BaseException], ...]:
    """What the stores raise when they fail; some of their libraries do not raise ``OSError``."""
    found: list[type[BaseException]] = [OSError]
    for module, name in (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
        ("aiohttp", "ClientError"),
    ):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            found.append(kind)
    return tuple(found)


def words(error: BaseException) -> str:
    """The first line of an error, or its kind."""
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
