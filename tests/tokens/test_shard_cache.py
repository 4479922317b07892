"""Shards of a remote folder: fetched, verified, bounded, shared by processes of a host."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import fsspec
import numpy as np
import pytest

from pipeline.errors import DataError, EnvironmentFault
from pipeline.tokens import cache as cache_module
from pipeline.tokens.cache import index_fingerprint
from pipeline.tokens.data import TokenData
from pipeline.tokens.stream import Stream

SIZES = {"a": 700, "b": 333}


@pytest.fixture
def remote(tokens_of: Callable[..., TokenData], tmp_path: Path) -> str:
    tokens_of(tmp_path / "tokens", SIZES)
    store = fsspec.filesystem("memory")
    if store.exists("/corpus"):
        store.rm("/corpus", recursive=True)
    store.put(str(tmp_path / "tokens"), "/corpus", recursive=True)
    return "memory://corpus"


def windows(data: TokenData, **options: int) -> np.ndarray:
    stream = Stream(data, 10, 1, {}, **options)
    return stream.batch(0, stream.windows)


def test_the_same_windows_and_a_second_start_fetches_nothing(remote: str, tmp_path: Path) -> None:
    local = TokenData.open(tmp_path / "tokens")
    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        assert data.fingerprint == local.fingerprint == index_fingerprint(remote)
        assert np.array_equal(windows(data), windows(local))
    fsspec.filesystem("memory").rm("/corpus/train", recursive=True)
    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        assert np.array_equal(windows(data), windows(local))


def test_a_url_of_this_machine_is_a_path(remote: str, tmp_path: Path) -> None:
    data = TokenData.open(f"file://{tmp_path}/tokens")
    assert data.cache is None and data.fingerprint == index_fingerprint(f"file://{tmp_path}/tokens")
    assert len(windows(data))


def test_no_password_stands_in_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        index_fingerprint("http://me:p@secret@localhost:9/tokens?key=secret")
    assert "secret" not in str(raised.value)


def test_urls_that_fsspec_chains(remote: str, tmp_path: Path) -> None:
    with TokenData.open(f"simplecache::{remote}", cache=tmp_path / "cache") as data:
        assert data.fingerprint == index_fingerprint(remote) == index_fingerprint(f"simplecache::{remote}")
        assert len(windows(data))


def test_the_cache_stays_within_its_bound(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tokens.data.OPEN_SHARDS", 2)
    local = TokenData.open(tmp_path / "tokens")
    largest = max(shard.bytes for shard in local.index.shards())
    limit = 3 * largest
    with TokenData.open(remote, cache=tmp_path / "cache", cache_bytes=limit) as data:
        assert data.cache is not None
        left = data.cache.folder / f"{'0' * 64}.tar.0123.tmp"  # a killed process reserved all room
        left.write_bytes(bytes(limit))
        stream = Stream(data, 10, 1, {}, stretch=12)
        wanted = Stream(local, 10, 1, {}, stretch=12)
        for first in range(0, stream.windows - 4, 4):
            stream.want(first + 4, 4)
            assert np.array_equal(stream.batch(first, 4), wanted.batch(first, 4))
    for fetching in threading.enumerate():  # what had begun when it was closed
        if fetching.name.startswith("fetch"):
            fetching.join(300)
    assert 0 < sum(path.stat().st_size for path in left.parent.glob("*.tar*")) <= limit
    assert not left.exists()
    small = TokenData.open(remote, cache=tmp_path / "small", cache_bytes=100)
    with small, pytest.raises(EnvironmentFault, match=r"the cache may hold 100; raise pretrain.cache_bytes"):
        windows(small)


def test_what_becomes_whole_while_another_makes_room_is_counted(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is renamed between the listing of the folder and the look at its size."""
    local = TokenData.open(tmp_path / "tokens")
    first, second = local.index.parts["train"]["a"][:2]
    with TokenData.open(remote, cache=tmp_path / "cache", cache_bytes=max(first.bytes, second.bytes) + 1) as data:
        cache = data.cache
        assert cache is not None
        counted, copied = threading.Event(), threading.Event()
        whole_left, whole_open = type(cache)._left, type(cache._remote).open

        def left(self: object, temporary: Path) -> bool:
            counted.set()
            assert copied.wait(300)
            deadline = time.monotonic() + 1.0  # without a lock it would be renamed by then
            while temporary.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            return whole_left(self, temporary)  # type: ignore[arg-type]

        def opened(self: object, path: str, *arguments: object, **options: object) -> object:
            if path.endswith(first.file):
                assert counted.wait(300)
                copied.set()
            return whole_open(self, path, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(type(cache), "_left", left)
        monkeypatch.setattr(type(cache._remote), "open", opened)
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(cache.path, first)
            while not list(cache.folder.glob("*.tmp")):
                assert not one.done()
                time.sleep(0.01)
            pool.submit(cache.path, second).result(300)
            one.result(300)
        assert [path.name for path in cache.folder.glob("*.tar*")] == [f"{second.sha256}.tar"]


def test_what_is_deleted_at_the_moment_of_its_use_is_fetched_again(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utime = os.utime

    def late(path: Path) -> None:
        path.unlink()  # another process needs the room
        utime(path)

    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        wanted = windows(data)
    monkeypatch.setattr(os, "utime", late)
    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        assert np.array_equal(windows(data), wanted)


def test_what_is_damaged_or_missing_there_is_named(remote: str, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    content = bytearray(store.cat("/corpus/train/a-00000-001.tar"))
    content[640] ^= 1
    store.pipe("/corpus/train/a-00000-001.tar", bytes(content))
    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        with pytest.raises(DataError, match=r"memory://corpus/train/a-00000-001.tar: damaged: .* put a good copy"):
            windows(data)
        assert list(data.integrity.problems) == ["train/a-00000-001.tar"]
    store.rm("/corpus/train/a-00000-001.tar")
    again = TokenData.open(remote, cache=tmp_path / "cache")
    with again, pytest.raises(DataError, match=r"memory://corpus/train/a-00000-001.tar: no such file"):
        windows(again)
    with pytest.raises(DataError, match="not an index of token tars that can be read"):
        index_fingerprint("memory://nowhere")
    for content in (b"not JSON", b"[]", b'{"members": 3}'):
        store.pipe("/corpus/index.json", content)
        with pytest.raises(DataError, match="not an index of token tars"):
            TokenData.open(remote, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"nonsense://bucket: cannot be opened: .*nonsense"):
        TokenData.open("nonsense://bucket", cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"nonsense://bucket: cannot be opened: .*nonsense"):
        index_fingerprint("nonsense://bucket")


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = sys.modules["fsspec.registry"].known_implementations  # `fsspec.registry` is another thing, of its name
    missing = {"class": "headwater_has_no_such_package.FileSystem", "err": "Please install far"}
    monkeypatch.setitem(known, "far", missing)
    with pytest.raises(EnvironmentFault, match=r"far://bucket/tokens: .*Please install far; pip install it"):
        index_fingerprint("far://bucket/tokens")


def test_a_store_that_fails_now_and_then(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PAUSE", 0.0)
    store = fsspec.filesystem("memory")
    opened, whole = [], type(store).open

    def failing(self: object, path: str, *arguments: object, **options: object) -> object:
        opened.append(path)
        if len(opened) % 2:
            raise ConnectionError("reset by peer")
        return whole(self, path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "open", failing)
    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        assert np.array_equal(windows(data), windows(TokenData.open(tmp_path / "tokens")))


def test_a_slow_store_does_not_keep_a_process_that_ends(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            began.set()
            time.sleep(0.1)
            return super().read(1)  # a shard would take a quarter of an hour

    with TokenData.open(remote, cache=tmp_path / "cache") as data:
        store = fsspec.filesystem("memory")
        monkeypatch.setattr(type(store), "open", lambda self, path, *_, **__: Slow(self.cat(path)))
        Stream(data, 10, 1, {}).want(0, 30)
        assert began.wait(300)
    fetching = [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
    for thread in fetching:
        thread.join(300)
    assert not [thread for thread in fetching if thread.is_alive()]
    assert not list((tmp_path / "cache").rglob("*.tar*"))


class _Counting(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


READER = """
import sys; from pathlib import Path
from pipeline.tokens.data import TokenData; from pipeline.tokens.stream import Stream
data = TokenData.open(sys.argv[1], cache=Path(sys.argv[2])); stream = Stream(data, 10, 1, {})
print(stream.batch(0, stream.windows).sum())
"""


def test_processes_of_a_host_share_it(remote: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    _Counting.asked.clear()
    readers: list[subprocess.Popen[str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Counting, directory=str(tmp_path / "tokens")))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        command = [sys.executable, "-c", READER, url, str(tmp_path / "cache")]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        sums = {reader.communicate(timeout=300)[0] for reader in readers}
    finally:
        for reader in readers:
            reader.kill()
        server.shutdown()
        server.server_close()
    assert sums == {f"{windows(TokenData.open(tmp_path / 'tokens')).sum()}\n"}
    shards = [path for path in _Counting.asked if path.endswith(".tar")]
    assert len(set(shards)) == 8
    held = list((tmp_path / "cache").rglob("*.tar"))
    assert len(held) == 8 and not list((tmp_path / "cache").rglob("*.tmp"))
    assert len(shards) == 8  # each was asked for once
