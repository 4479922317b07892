"""Text tars: WebDataset tars of documents, byte-identical for the same documents.

Plain USTAR; a document is two members, `<key>.txt` (UTF-8) then `<key>.json` (`id`, `source`, `language` where known,
and its metadata; keys sorted). Times and owners are zero. Stock `webdataset` reads them. They are never extracted.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import orjson

from pipeline import manifest
from pipeline.corpus.document import Document
from pipeline.errors import DataError
from pipeline.files import TEMPORARY, disk_errors, sync_directory

Part = Literal["train", "validation"]
BLOCK = tarfile.BLOCKSIZE
_RESERVED = ("id", "source", "language")


class TextTarWriter:
    """Writes documents to `<folder>/<stem>-000.tar`, `-001.tar`, …

    A tar is closed once it holds `shard_bytes` of text, and bears its name only when it is whole. Use as a context
    manager; on an error nothing half-written stays.
    Raises: EnvironmentFault when the disk is full or not writable.
    """

    def __init__(self, folder: Path, stem: str, shard_bytes: int) -> None:
        self.folder, self.stem, self.shard_bytes = folder, stem, shard_bytes
        self.paths: list[Path] = []
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
                self._handle = open(_temporary(path), "wb", buffering=1 << 20)  # noqa: SIM115 - closed with the tar
                self._tar = tarfile.TarFile(fileobj=self._handle, mode="w", format=tarfile.USTAR_FORMAT)
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
        os.replace(_temporary(path), path)
        sync_directory(self.folder)
        self._tar = self._handle = None
        self._held = 0
        self.paths.append(path)

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
                _temporary(self._path()).unlink(missing_ok=True)


def read_text_tar(path: Path) -> Iterator[Document]:
    """The documents of a text tar, in order. Memory: one document.

    Raises: DataError naming the tar, the member and the offset when it is cut short, damaged or no text tar.
    """
    remedy = "delete the folder text/ and run shard again"
    with _opened(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        offset = 0
        pending: tuple[str, str] | None = None  # key and text that wait for their .json
        while True:
            header = handle.read(BLOCK)
            if len(header) == BLOCK and header == bytes(BLOCK):
                break
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                where = f"after member {pending[0]}.txt" if pending else f"of {size}"
                raise DataError(
                    f"{path}: ends early or is damaged at offset {offset} ({where}; {error}); {remedy}"
                ) from None
            if not member.isreg() or offset + BLOCK + member.size > size:
                problem = "is cut short" if member.isreg() else "is not a plain file"
                raise DataError(f"{path}: member {member.name!r} at offset {offset} {problem}; {remedy}")
            content = handle.read(member.size)
            handle.seek(-member.size % BLOCK, io.SEEK_CUR)
            key, _, extension = member.name.rpartition(".")
            try:
                if extension == "txt" and pending is None:
                    pending = (key, content.decode("utf-8"))
                elif extension == "json" and pending is not None and pending[0] == key:
                    yield _document(pending[1], content)
                    pending = None
                else:
                    raise ValueError("not a .txt followed by its .json")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: member {member.name!r} at offset {offset}: {error}; {remedy}") from None
            offset += BLOCK + member.size + -member.size % BLOCK
        if pending is not None:
            raise DataError(f"{path}: member {pending[0]}.json is missing at offset {offset}; {remedy}")


def text_tars(text_folder: Path, part: Part) -> list[Path]:
    """The tars of a part, in order, as the manifest of the shard stage lists them.

    Raises: DataError when the stage has not finished.
    """
    outputs = manifest.load(text_folder).outputs
    return sorted(
        text_folder / output.path
        for output in outputs
        if output.path.startswith(f"{part}/") and output.path.endswith(".tar")
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb", buffering=1 << 20) as handle:
            yield handle
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the mode is 0644 by default
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _document(text: str, content: bytes) -> Document:
    facts = orjson.loads(content)
    language = facts.pop("language", None)
    return Document(text, facts.pop("id"), facts.pop("source"), language, facts)
