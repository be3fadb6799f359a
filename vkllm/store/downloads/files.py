"""Downloads over HTTP: they are written to a part file, resumed after a break, and checked before they count.

Knows requests, ranges and sha256; does not know hubs, indices or what is in a file. The HTTP client is the one of
`huggingface_hub`, so that one set of proxy and certificate settings holds for all downloads.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from vkllm.errors import ModelNotFound
from vkllm.sizes import size

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

CHUNK_BYTES = 1 << 20
ROOM_KEPT_BYTES = 256 << 20
"""Bytes of a disk that a download of unknown length leaves free."""
_ROOM_CHECK_BYTES = 16 << 20
N_TRIES = 4
"""How often a download is retried without any progress."""
RETRY_WAIT_S = 1.0

_LENGTH = re.compile("[0-9]{1,18}")
_REASONS = {
    401: "it asks for a login (401)",
    403: "access is forbidden (403)",
    404: "there is no such file (404)",
    410: "there is no such file any more (410)",
}


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch. `what` names it in progress and errors; None where size or sha256 are not known.

    `setting` is the environment variable that moves the folder that it goes to.
    """

    what: str
    url: str
    n_bytes: int | None
    sha256: str | None
    setting: str
    headers: Mapping[str, str] = field(default_factory=dict)


class BrokenOff(Exception):
    """The server or the network failed in a way that may pass; the text says how."""


class Refused(ModelNotFound):
    """The server's answer is that it will not give the file. status: of HTTP, such as 404."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _PartFile:
    """A file that grows at its end, with the sha256 of its content where one is wanted."""

    def __init__(self, path: Path, *, is_hashed: bool) -> None:
        self.path = path
        self._file = path.open("ab")
        self._digest = hashlib.sha256() if is_hashed else None

    @property
    def n_bytes(self) -> int:
        """Bytes that are here, also from earlier attempts."""
        return self._file.tell()

    def hash_beginning(self, on_hashed: Callable[[int], None]) -> None:
        """Hashes what an earlier attempt left."""
        if self._digest is not None:
            with self.path.open("rb") as beginning:
                while chunk := beginning.read(CHUNK_BYTES):
                    self._digest.update(chunk)
                    on_hashed(beginning.tell())

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        if self._digest is not None:
            self._digest.update(chunk)

    def restart(self) -> None:
        """Deletes what is here."""
        self._file.seek(0)
        self._file.truncate()
        if self._digest is not None:
            self._digest = hashlib.sha256()

    def sha256(self) -> str | None:
        return None if self._digest is None else self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


def download(remote: RemoteFile, part: Path, target: Path, on_progress: OnProgress) -> None:
    """Fetches into `part`, where an earlier attempt may have left its beginning, and moves it to `target` when whole.

    Raises ModelNotFound. After a break, a full disk and the like the part stays and the next call continues it;
    one that is whole and has a wrong sha256 is removed.
    """
    with told_for(remote.what, part.parent, remote.setting):
        part.parent.mkdir(parents=True, exist_ok=True)
        with _PartFile(part, is_hashed=remote.sha256 is not None) as file:
            file.hash_beginning(lambda n_done: on_progress(f"checking {remote.what}", n_done, file.n_bytes))
            _fetch_rest(remote, file, on_progress)
        if file.sha256() != remote.sha256:
            part.unlink()
            raise ModelNotFound(
                f"{remote.what}: the download is not the published file (its sha256 differs); try again, and if it "
                "happens again do not use this source."
            )
        os.replace(part, target)


def _fetch_rest(remote: RemoteFile, file: _PartFile, on_progress: OnProgress) -> None:
    """Appends what is missing, with new attempts as long as they make progress."""
    n_fruitless = 0
    while True:
        n_before = file.n_bytes
        try:
            return _attempt(remote, file, on_progress)
        except BrokenOff as error:
            n_fruitless = 0 if file.n_bytes > n_before else n_fruitless + 1
            if n_fruitless == N_TRIES:
                total = "" if remote.n_bytes is None else f" of {size(remote.n_bytes)}"
                raise ModelNotFound(
                    f"{remote.what} could not be fetched: the download broke off after {size(file.n_bytes)}{total} "
                    f"({error}); check the network and try again; it resumes there."
                ) from error
        time.sleep(RETRY_WAIT_S)


def _attempt(remote: RemoteFile, file: _PartFile, on_progress: OnProgress) -> None:
    """One request for all that is missing."""
    if remote.n_bytes is not None and file.n_bytes > remote.n_bytes:
        file.restart()
    if file.n_bytes == remote.n_bytes:
        return
    headers = dict(remote.headers)
    if file.n_bytes:
        headers["Range"] = f"bytes={file.n_bytes}-"
    with response_to(remote.what, remote.url, headers) as response:
        if file.n_bytes and not _continues(response, file.n_bytes):
            file.restart()
            if response.status_code != 200:
                raise BrokenOff("the server cannot resume the download")
        n_bytes = remote.n_bytes or length_of(response)
        if n_bytes is not None:
            _check_room(remote, file.path.parent, n_bytes - file.n_bytes)
        next_check = file.n_bytes
        for chunk in chunks_of(response):
            if n_bytes is None and file.n_bytes >= next_check:
                _check_room(remote, file.path.parent, ROOM_KEPT_BYTES)
                next_check = file.n_bytes + _ROOM_CHECK_BYTES
            if n_bytes is not None and file.n_bytes + len(chunk) > n_bytes:
                raise BrokenOff("the server sent more than the whole file")
            file.append(chunk)
            on_progress(f"fetching {remote.what}", file.n_bytes, n_bytes or file.n_bytes)
    if n_bytes is not None and file.n_bytes != n_bytes:
        raise BrokenOff("the server sent less than the whole file")


def _continues(response: Any, n_done: int) -> bool:
    """Whether a response continues after the bytes that are here."""
    return bool(
        response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {n_done}-")
    )


def _check_room(remote: RemoteFile, folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ModelNotFound(
            f"{remote.what} needs {size(needed)} more in {folder}, and {size(free)} are free; "
            f"make room, or set {remote.setting} to use another folder."
        )


@contextmanager
def response_to(what: str, url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """The response to a GET, its body not yet read (httpx's `Response`).

    Raises Refused, a ModelNotFound, for an answer that will not change, BrokenOff for one that may.
    """
    from huggingface_hub import constants, get_session

    stream = get_session().stream(
        "GET", url, headers={**headers, "Accept-Encoding": "identity"}, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    try:
        response = stream.__enter__()
    except Exception as error:  # Whatever the client raises: no address, no connection, no answer in time.
        raise BrokenOff(f"{urlsplit(url).hostname} cannot be reached: {first_line(error)}") from error
    try:
        status = response.status_code
        if status >= 500 or status in (408, 429):
            raise BrokenOff(f"the server answered {status} {response.reason_phrase}")
        if status >= 400 and status != 416:
            reason = _REASONS.get(status, f"the server answered {status} {response.reason_phrase}")
            raise Refused(f"{what} could not be fetched: {url}: {reason}; check the address.", status)
        yield response
    finally:
        stream.__exit__(None, None, None)


def length_of(response: Any) -> int | None:
    """Bytes of the whole file, where the response tells."""
    if "Content-Encoding" in response.headers:
        return None
    text = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(text) if _LENGTH.fullmatch(text) else None


def chunks_of(response: Any) -> Iterator[bytes]:
    """The body; raises BrokenOff where it ends early."""
    chunks = response.iter_bytes()
    while True:
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        except Exception as error:  # Whatever the client raises when a connection breaks.
            raise BrokenOff(first_line(error)) from error
        yield chunk


@contextmanager
def told_for(what: str, folder: Path, setting: str) -> Iterator[None]:
    """Turns errors of the file system into ModelNotFound. setting: the variable that moves the folder."""
    try:
        yield
    except OSError as error:
        kept = "what is here so far is kept; make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ModelNotFound(
            f"{what} could not be fetched into {folder}: {error.strerror or error}; "
            f"{kept}set {setting} to use another folder."
        ) from error


def is_inside(name: str) -> bool:
    """Whether a relative name, joined to a folder, stays in it."""
    drives = ":" if os.name == "nt" else ""
    return not any(part in ("", ".", "..") or re.search(rf"[\\\x00-\x1f{drives}]", part) for part in name.split("/"))


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
