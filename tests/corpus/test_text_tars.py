from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_corpora import Shard, prose, write_jsonl

from pipeline.corpus.document import Document
from pipeline.corpus.text_tars import TextTarWriter, read_text_tar, text_tars
from pipeline.errors import DataError, EnvironmentFault

DOCUMENTS = [
    Document("one\n", "a/b.txt", "web", "en", {"path": "a/b.txt"}),
    Document("中文 <script>", '../"quoted"\n', "web"),
    Document("x" * 1500, "c", "web", None, {"package": "numpy", "id": "not the id"}),
]


def write(folder: Path, shard_bytes: int = 1 << 20) -> list[Path]:
    with TextTarWriter(folder, "web-00000", shard_bytes) as tars:
        for number, document in enumerate(DOCUMENTS):
            tars.add(f"web-00000-{number:07d}", document)
    return tars.paths


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "a")
    (again,) = write(tmp_path / "b")
    assert path.name == "web-00000-000.tar"
    assert path.read_bytes() == again.read_bytes()
    found = list(read_text_tar(path))
    assert found[:2] == DOCUMENTS[:2]
    assert found[2].metadata == {"package": "numpy"}
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert [member.name for member in members][:3] == [f"web-00000-000000{n}" for n in ("0.txt", "0.json", "1.txt")]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.type) for m in members} == {
        (0, 0, 0, 0o644, "", tarfile.REGTYPE)
    }


def test_a_tar_is_closed_once_it_is_full(tmp_path: Path) -> None:
    paths = write(tmp_path, shard_bytes=5)
    assert [path.name for path in paths] == [f"web-00000-00{number}.tar" for number in range(2)]
    assert [document for path in paths for document in read_text_tar(path)][:2] == DOCUMENTS[:2]


@pytest.mark.parametrize("length", [1, 99, 100, 101, 200])
def test_names_of_any_length_and_other_writers(tmp_path: Path, length: int) -> None:
    folder, key = "f" * max(0, length - 60), "k" * min(length, 60)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, content in ((".txt", b"text"), (".json", b'{"id": "1", "source": "web"}')):
            member = tarfile.TarInfo(f"{folder}/{key}{suffix}" if folder else f"{key}{suffix}")
            member.size, member.mtime, member.uname = len(content), 1_700_000_000, "somebody"
            tar.addfile(member, io.BytesIO(content))
    assert list(read_text_tar(tmp_path / "x.tar")) == [Document("text", "1", "web")]


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (124, b"-0000000001\0", "not an octal number"),  # would be read over and over
        (124, b"0000_000001\0", "not an octal number"),
        (124, b"\x80" + bytes(10) + b"\1", "not an octal number"),  # GNU's binary numbers
        (124, b"77777777777\0", "is cut short"),
        (156, b"2", "is not a plain file"),
        (0, b"../x.exe", "not a .txt followed by its .json"),
    ],
)
def test_headers_that_lie_are_named(tmp_path: Path, place: int, content: bytes, message: str) -> None:
    (path,) = write(tmp_path)
    tar = bytearray(path.read_bytes())
    tar[place : place + len(content)] = content
    path.write_bytes(tar)
    with pytest.raises(DataError, match="bad checksum"):
        list(read_text_tar(path))
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    path.write_bytes(tar)
    with pytest.raises(DataError, match=message):
        list(read_text_tar(path))


def test_a_tar_that_is_cut_anywhere_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in [0, 1, 512, 515, 700, 1024, 1536, 2048, *range(2100, end, 512)]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="run shard again") as error:
            list(read_text_tar(path))
        assert str(error.value).startswith(f"{path}: ")
        assert "at offset" in str(error.value)


def test_damage_and_strange_members_are_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[1030] ^= 1  # in the second header
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"damaged at offset 1024 .*bad checksum"):
        list(read_text_tar(path))

    def tar(*members: tuple[str, bytes, bytes]) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
            for name, content, kind in members:
                member = tarfile.TarInfo(name)
                member.size, member.type = len(content), kind
                out.addfile(member, io.BytesIO(content))

    facts = b'{"id": "1", "source": "web"}'
    for members, words in [
        ([("a.json", facts, b"0")], "'a.json' at offset 0: not a .txt followed by its .json"),
        ([("a.txt", b"x", b"0"), ("b.json", facts, b"0")], "'b.json' at offset 1024: not a .txt"),
        ([("a.txt", b"x", b"0")], "a.json is missing"),
        ([("a.txt", b"\xff", b"0")], "'a.txt' at offset 0: 'utf-8' codec"),
        ([("a.txt", b"x", b"0"), ("a.json", b"[1]", b"0")], "'a.json' at offset 1024"),
        ([("a.txt", b"", b"2")], "'a.txt' at offset 0 is not a plain file"),
    ]:
        tar(*members)
        with pytest.raises(DataError, match="shard again") as error:
            list(read_text_tar(path))
        assert words in str(error.value)
    with pytest.raises(DataError, match=r"gone\.tar: cannot be read: No such file"):
        list(read_text_tar(tmp_path / "gone.tar"))


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(st.integers(0, 4000), st.binary(max_size=600))
def test_random_damage_gives_documents_or_one_clear_line(tmp_path: Path, offset: int, damage: bytes) -> None:
    (path,) = write(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(damage)] = damage
    path.write_bytes(whole)
    try:
        list(read_text_tar(path))
    except DataError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr("pipeline.files.secrets.token_hex", lambda count: "own")
    (tmp_path / "web-00000-000.tar.own.tmp").symlink_to(full)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        write(tmp_path, shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_the_tars_of_a_stage_come_from_its_manifest(tmp_path: Path, shard: Shard) -> None:
    texts = write_jsonl(tmp_path / "in.jsonl", [prose(n) for n in range(20)])
    shard([{"name": "web", "type": "jsonl", "path": str(texts)}], validation=0.3, shard_bytes=2000)
    text = tmp_path / "run" / "text"
    (text / "train" / "stray.tar").write_bytes(b"")
    train, validation = text_tars(text, "train"), text_tars(text, "validation")
    assert [path.name for path in train] == [f"web-00000-{number:03d}.tar" for number in range(len(train))]
    assert len(train) > 1
    ids = [document.id for path in [*train, *validation] for document in read_text_tar(path)]
    assert len(ids) == len(set(ids)) == 20
    with pytest.raises(DataError, match="has not finished"):
        text_tars(tmp_path, "train")
