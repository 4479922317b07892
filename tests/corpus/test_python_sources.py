from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.corpus.document import Document, Dropped
from pipeline.corpus.readers.split import read_split
from pipeline.corpus.sources import plan_splits, source_fingerprint
from pipeline.errors import DataError
from pipeline.recipe import Corpus, PythonSource


def source(*packages: str, **settings: str) -> PythonSource:
    return PythonSource.model_validate({"name": "py", "type": "python_docs", "packages": packages} | settings)


def documents(wanted: PythonSource) -> list[Document | Dropped]:
    return [document for split in plan_splits(wanted, 1 << 30) for document, _ in read_split(wanted, split, Corpus())]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    root = tmp_path / "headwater_sample"
    for folder in ("sub", "tests", "__pycache__"):
        (root / folder).mkdir(parents=True)
        (root / folder / "code.py").write_text('"""Module."""\ndef f():\n    r"""\n    Does f.\n    """\n')
    (root / "__init__.py").write_text("\ufeff'''Root.'''\nraise RuntimeError('imported')\n")
    (root / "broken.py").write_text("def f(:\n")
    (tmp_path / "headwater_single.py").write_text("# one file\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root.name


def test_sources(package: str) -> None:
    found = {one.id: one for one in documents(source(package, "headwater_single"))}
    assert set(found) == {
        f"{package}/__init__.py",
        f"{package}/broken.py",
        f"{package}/sub/code.py",
        "headwater_single/headwater_single.py",
    }
    one = found[f"{package}/sub/code.py"]
    assert isinstance(one, Document)
    assert one.metadata == {"package": package, "path": "sub/code.py"}
    assert one.text.startswith('"""Module."""\ndef f')
    assert package not in sys.modules


def test_docstrings(package: str) -> None:
    found = {one.id: one for one in documents(source(package, content="docstrings"))}
    assert found[f"{package}/sub/code.py"].text == "Module.\n\nDoes f."
    assert found[f"{package}/__init__.py"].text == "Root."
    broken = found[f"{package}/broken.py"]
    assert isinstance(broken, Dropped)
    assert broken.rule == "not_python"


@pytest.mark.parametrize("name", ["headwater_not_there", "os.path", "..", "sys"])
def test_a_package_that_is_not_installed(name: str) -> None:
    with pytest.raises(DataError, match=f"source py: Python package '{name}' is not installed here"):
        source_fingerprint(source("stdlib", name))


def test_the_standard_library_without_tests() -> None:
    names = [item.name for split in plan_splits(source("stdlib"), 1 << 30) for item in split.items]
    assert "stdlib/argparse.py" in names
    assert "stdlib/json/decoder.py" in names
    assert not [name for name in names if {"test", "tests", "site-packages", "idlelib"} & set(name.split("/"))]


def test_a_bound_cuts_an_equal_share_from_every_package() -> None:
    wanted = source("stdlib", "numpy", "pydantic")
    items = [item for split in plan_splits(wanted, 1 << 30) for item in split.items]
    assert items == [
        item for split in plan_splits(source("pydantic", "stdlib", "numpy"), 1 << 30) for item in split.items
    ]
    half = items[: len(items) // 2]
    for package in wanted.packages:
        share = sum(item.name.startswith(package) for item in half) / sum(
            item.name.startswith(package) for item in items
        )
        assert 0.3 < share < 0.7
    assert source_fingerprint(wanted) == source_fingerprint(wanted)
