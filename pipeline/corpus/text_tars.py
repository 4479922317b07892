"""Text tars: WebDataset tars of documents, byte-identical for the same documents.

Plain USTAR; a document is two members, `<key>.txt` (UTF-8) then `<key>.json` (`id`, `source`, `language` where known,
and its metadata; keys sorted). Times and owners are zero. Stock `webdataset` reads them. They are never extracted.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, TypeVar

import orjson

from pipeline import manifest
from pipeline.corpus.document import Document
from pipeline.errors import DataError
from pipeline.files import Hashed, disk_errors, own_temporary, sync_directory

Part = Literal["train", "validation"]
Text = TypeVar("Text", str, bytes)
BLOCK = tarfile.BLOCKSIZE
REMEDY = "delete the folder text/ and run shard again"
_RESERVED = ("id", "source", "language")
_END = bytes(BLOCK)  # a tar's last blocks


class TextTarWriter:
    """Writes documents to `<folder>/<stem>-000.tar`, `-001.tar`, …

    A tar is closed once it holds `shard_bytes` of text, and bears its name only when it is whole. Use as a context
    manager; on an error nothing half-written stays. paths, checksums: of the finished tars (SHA-256).
    Raises: EnvironmentFault when the disk is full or not writable.
    """

    def __init__(self, folder: Path, stem: str, shard_bytes: int) -> None:
        self.folder, self.stem, self.shard_bytes = folder, stem, shard_bytes
        self.paths: list[Path] = []
        self.checksums: list[str] = []
        self.documents = self.bytes = 0
        self._tar: tarfile.TarFile | None = None
        self._handle: IO[bytes] | None = None
        self._held = 0

    def add(self, key: str, document: Document) -> None:
        """Append a document. key: its name in the tar, without a dot."""
        text = document.text.encode("utf-8")
        facts: dict[str, str] = {name: value for name, value in document.metadata.items() if name not in _RESERVED}
        facts |= {"id": document.id, "source": document.source}
        if document.language is not None:
            facts["language"] = document.language
        path = self._path()
        with disk_errors(path):
            if self._tar is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._temporary = own_temporary(path)
                self._handle = open(self._temporary, "wb", buffering=1 << 20)  # noqa: SIM115 - closed with the tar
                self._hashed = Hashed(self._handle)
                self._tar = tarfile.TarFile(fileobj=self._hashed, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
            _add(self._tar, f"{key}.txt", text)
            _add(self._tar, f"{key}.json", orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
            self._held += len(text)
            self.documents += 1
            self.bytes += len(text)
            if self._held >= self.shard_bytes:
                self._finish()

    def close(self) -> None:
        """Finish the tar that is open, if any."""
        if self._tar is not None:
            with disk_errors(self._path()):
                self._finish()

    def _path(self) -> Path:
        return self.folder / f"{self.stem}-{len(self.paths):03d}.tar"

    def _finish(self) -> None:
        assert self._tar is not None and self._handle is not None
        path = self._path()
        self._tar.close()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        os.replace(self._temporary, path)
        sync_directory(self.folder)
        self._tar = self._handle = None
        self._held = 0
        self.paths.append(path)
        self.checksums.append(self._hashed.sha256)

    def __enter__(self) -> TextTarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            if self._handle is not None:
                with contextlib.suppress(OSError):  # it flushes: a full disk would hide the error that is on its way
                    self._handle.close()
                self._temporary.unlink(missing_ok=True)


def read_text_tar(path: Path) -> Iterator[Document]:
    """The documents of a text tar, in order. Memory: one document.

    Raises: DataError naming the tar, the member and the offset when it is cut short, damaged or no text tar.
    """
    for text, facts, where in _pairs(path, bytes.decode):
        try:
            yield _document(text, facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: {where}: {error}; {REMEDY}") from None


def read_texts(path: Path) -> Iterator[bytes]:
    """The texts of a text tar, in order, in UTF-8, for who needs no more of its documents.

    Raises: as `read_text_tar`, but that what is said of a text is not looked at.
    """
    for text, _, _ in _pairs(path, _checked):
        yield text


def _checked(text: bytes) -> bytes:
    """What was given. Raises: ValueError when it is no UTF-8."""
    if not text.isascii():
        text.decode()
    return text


def _pairs(path: Path, read: Callable[[bytes], Text]) -> Iterator[tuple[Text, bytes, str]]:
    """Of every document the text, as `read` gives it, the JSON, and where that lies in the tar. Raises: DataError."""
    with _opened(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        offset = 0
        pending: tuple[str, Text] | None = None  # key and text that wait for their .json
        while True:
            header = handle.read(BLOCK)
            if len(header) == BLOCK and header == _END:
                break
            try:
                name, length, regular = _header(header)
            except ValueError as error:
                where = f"after member {pending[0]}.txt" if pending else f"of {size}"
                raise DataError(
                    f"{path}: ends early or is damaged at offset {offset} ({where}; {error}); {REMEDY}"
                ) from None
            where = f"member {name!r} at offset {offset}"
            if not regular or offset + BLOCK + length > size:
                raise DataError(f"{path}: {where} {'is cut short' if regular else 'is not a plain file'}; {REMEDY}")
            content = handle.read(length)
            handle.seek(-length % BLOCK, io.SEEK_CUR)
            key, _, extension = name.rpartition(".")
            if extension == "txt" and pending is None:
                try:
                    pending = (key, read(content))
                except ValueError as error:
                    raise DataError(f"{path}: {where}: {error}; {REMEDY}") from None
            elif extension == "json" and pending is not None and pending[0] == key:
                yield pending[1], content, where
                pending = None
            else:
                raise DataError(f"{path}: {where}: not a .txt followed by its .json; {REMEDY}")
            offset += BLOCK + length + -length % BLOCK
        if pending is not None:
            raise DataError(f"{path}: member {pending[0]}.json is missing at offset {offset}; {REMEDY}")


def text_tars(text_folder: Path, part: Part) -> list[Path]:
    """The tars of a part, in order, as the manifest of the shard stage lists them.

    Raises: DataError when the stage has not finished.
    """
    return list(tar_sizes(text_folder, part))


def tar_sizes(text_folder: Path, part: Part) -> dict[Path, int]:
    """The tars of a part, in order, with their bytes as the manifest states them: of 400,000 tars none is looked at.

    Raises: DataError when the stage has not finished.
    """
    found = {
        text_folder / output.path: output.bytes
        for output in manifest.load(text_folder).outputs
        if output.path.startswith(f"{part}/") and output.path.endswith(".tar")
    }
    return dict(sorted(found.items()))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb", buffering=1 << 20) as handle:
            yield handle
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _header(block: bytes) -> tuple[str, int, bool]:
    """Name, size and whether it is a plain file, of a USTAR header (POSIX.1-1988, IEEE Std 1003.1 `pax`).

    `tarfile` reads all sixteen fields, in five times the time: a quarter of what it takes to encode the text.
    Raises: ValueError when it is cut, damaged or of another format.
    """
    if len(block) < BLOCK:
        raise ValueError("truncated header" if block else "no header")
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != _octal(block[148:156]):
        raise ValueError("bad checksum")
    name, _, _ = block[:100].partition(b"\0")
    if block[345] and block[257:263] == b"ustar\0":  # the front of a name of more than 100 bytes
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape"), _octal(block[124:136]), block[156:157] in (b"0", b"\0")


def _octal(field: bytes) -> int:
    """A number of a header. Raises: ValueError, also for what `int` would let pass (a sign, an underscore)."""
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError(f"{field!r} is not an octal number")
    return int(digits, 8)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the mode is 0644 by default
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _document(text: str, content: bytes) -> Document:
    facts = orjson.loads(content)
    language = facts.pop("language", None)
    return Document(text, facts.pop("id"), facts.pop("source"), language, facts)
