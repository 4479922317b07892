"""Token tars that lie elsewhere (s3://, gs://, http://, …, whatever fsspec knows), kept on the local disk while needed.

Shards are fetched whole, checksummed on the way, and shared by the ranks of a host: one fetches, the others wait for
its lock (which ends with the process that holds it). The folder's size is bounded: what was used longest ago goes.
A process that has a shard open goes on reading it after that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import orjson

from pipeline.corpus.locations import file_system, one_line, shown
from pipeline.errors import DataError, EnvironmentFault
from pipeline.files import TEMPORARY, disk_errors, own_temporary, sha256_file
from pipeline.locks import wait_for_file
from pipeline.progress import log
from pipeline.tokens.integrity import BadShard
from pipeline.tokens.token_tars import INDEX, MEMBERS, Index, Shard, read_index

BLOCK = 1 << 22
TRIES, PAUSE = 4, 1.0  # of a fetch that fails; seconds, doubled each time
FETCHING = 4  # shards at a time
INDEX_BYTES = 4 << 30  # no index is larger: ten trillion tokens need 30 MB


def index_fingerprint(place: str) -> str:
    """The fingerprint that the index of a tokens folder states.

    Raises: DataError when there is none; EnvironmentFault when the store's package is not installed.
    """
    remote, root = file_system(place)
    try:
        with remote.open(f"{root.rstrip('/')}/{INDEX}", "rb") as handle:
            return str(orjson.loads(handle.read(INDEX_BYTES))["fingerprint"])
    except Exception as error:  # each kind of store raises its own
        raise DataError(
            f"{shown(place.rstrip('/'))}/{INDEX}: not an index of token tars that can be read ({one_line(error)}); "
            "set pretrain.tokens_from to a folder or URL that holds a copy of a tokens folder"
        ) from None


class ShardCache:
    """Shards of one remote tokens folder in `folder`, at most `limit` bytes of them (0: no bound)."""

    def __init__(self, url: str, folder: Path, limit: int) -> None:
        url = url.rstrip("/")
        self.url, self.limit = shown(url), limit  # for messages
        self.folder = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._remote, self._root = file_system(url)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(FETCHING, thread_name_prefix="fetch")
        self._wanted: dict[str, Future[Path]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def index(self) -> Index:
        """The folder's index, fetched anew. Raises: DataError when it is missing or damaged."""
        with self._locked("index"):
            self._copy(INDEX, self.folder / INDEX, INDEX_BYTES)
            try:
                wanted = str(orjson.loads((self.folder / INDEX).read_bytes())["members"]["sha256"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self.url}/{INDEX}: not an index of token tars") from None
            members = self.folder / MEMBERS
            if not members.is_file() or sha256_file(members) != wanted:
                self._copy(MEMBERS, members, INDEX_BYTES)
            return read_index(self.folder)

    def path(self, shard: Shard) -> Path:
        """A local copy of a shard, fetched if it is not here. Raises: BadShard, EnvironmentFault."""
        with self._lock:
            coming = self._wanted.pop(shard.file, None)
        return coming.result() if coming is not None else self._fetch(shard)

    def want(self, shards: Iterable[Shard]) -> None:
        """Fetch these in the background, unless they are here or on their way."""
        with self._lock:
            for shard in shards:
                if shard.file not in self._wanted and not self._local(shard).is_file():
                    self._wanted[shard.file] = self._pool.submit(self._fetch, shard)

    def close(self) -> None:
        """Leave what is not fetched yet, also in the middle of a shard: Python waits for these threads at its end."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _local(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _fetch(self, shard: Shard) -> Path:
        path = self._local(shard)
        with self._locked(shard.sha256):
            if _used_now(path, shard.bytes):
                return path
            for left in self.folder.glob(f"{path.name}.*{TEMPORARY}"):  # by a process that was killed
                left.unlink(missing_ok=True)
            temporary = self._reserve(path, shard.bytes)
            digest, size = self._copy(shard.file, path, shard.bytes, shard.sha256, temporary)
            if (digest, size) != (shard.sha256, shard.bytes):
                raise BadShard(
                    shard.file,
                    f"{self.url}/{shard.file}: damaged: {size:,} bytes of SHA-256 {digest[:12]}…, where the index says "
                    f"{shard.bytes:,} of {shard.sha256[:12]}…; put a good copy there",
                )
        return path

    def _copy(
        self, file: str, path: Path, most: int, sha256: str | None = None, temporary: Path | None = None
    ) -> tuple[str, int]:
        """Copy one remote file; where a checksum is given, another content is not kept. Returns checksum and size.

        temporary: where it is written first, which may be as large as it will be already (`_reserve`).

        A network that fails is asked again, some times. Raises: BadShard when there is no such file.
        """
        why = ""
        temporary = temporary or own_temporary(path)
        try:
            for attempt in range(TRIES):
                if attempt:
                    time.sleep(PAUSE * 2 ** (attempt - 1))
                try:
                    return self._copy_once(file, path, most, sha256, temporary)
                except FileNotFoundError:
                    raise BadShard(
                        file, f"{self.url}/{file}: no such file, or no answer; put a good copy there"
                    ) from None
                except EnvironmentFault:
                    raise
                except Exception as error:  # each kind of store raises its own
                    again = attempt < TRIES - 1
                    why = one_line(error)
                    log.warning(f"{self.url}/{file}: {why}; asked again" if again else f"{file}: {why}")
            raise EnvironmentFault(f"{self.url}/{file}: could not be fetched in {TRIES} tries: {why}")
        finally:
            temporary.unlink(missing_ok=True)

    def _copy_once(self, file: str, path: Path, most: int, sha256: str | None, temporary: Path) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with disk_errors(path), self._remote.open(f"{self._root}/{file}", "rb") as source:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), "wb") as target:
                while (block := source.read(BLOCK)) and size <= most:
                    self._go_on()
                    digest.update(block)
                    target.write(block)
                    size += len(block)
                target.truncate()
                target.flush()
                os.fsync(target.fileno())
            if sha256 is None or digest.hexdigest() == sha256:
                with self._locked("room"):  # or who counts at this moment may find it under neither name
                    temporary.replace(path)
        return digest.hexdigest(), size

    def _reserve(self, path: Path, needed: int) -> Path:
        """Room for a file of so many bytes: a temporary file of that size, which others count. What was used longest
        ago goes for it; where all room is taken by files that are being fetched, this waits for them.

        Raises: EnvironmentFault when it never will fit.
        """
        if self.limit and needed > self.limit:
            raise EnvironmentFault(
                f"{self.folder}: a shard of {self.url} has {needed:,} bytes, and the cache may hold {self.limit:,}; "
                "raise pretrain.cache_bytes"
            )
        temporary = own_temporary(path)
        while True:
            self._go_on()
            with self._locked("room"), disk_errors(temporary):
                if not self.limit or self._free(needed) >= needed:
                    with open(temporary, "wb") as handle:
                        handle.truncate(needed)
                    return temporary
            time.sleep(0.05)

    def _go_on(self) -> None:
        """Raises: EnvironmentFault once the cache is closed; nobody waits for what is fetched then."""
        if self._closed:
            raise EnvironmentFault(f"{self.url}: closed while a shard was fetched")

    def _free(self, needed: int) -> int:
        """Bytes that are free, once what was used longest ago is deleted as far as `needed` asks for."""
        held = []
        for path in self.folder.glob("*.tar*"):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == TEMPORARY and self._left(path):
                    continue
                stat = path.stat()
                held.append((stat.st_mtime_ns, stat.st_size, path))
        free = self.limit - sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if free < needed and path.suffix != TEMPORARY:
                path.unlink(missing_ok=True)
                free += size
        return free

    def _left(self, temporary: Path) -> bool:
        """Delete what a process that was killed had begun to fetch: nobody holds the lock of that shard."""
        try:
            with self._locked(temporary.name, wait=False):
                temporary.unlink(missing_ok=True)
                return True
        except BlockingIOError:
            return False

    @contextlib.contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[None]:
        """Alone on this host, among threads and processes, for as long as this process lives.

        Raises: BlockingIOError where another has it and this shall not wait.
        """
        path = self.folder / f"{name[:16]}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if wait:
                wait_for_file(descriptor, path, f"{self.url}: {name[:16]}")
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


def _used_now(path: Path, size: int) -> bool:
    """Whether a shard of so many bytes is here; if so, it is the one that was used last."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:  # whoever needs room may delete it at any moment
        return False
    return True
