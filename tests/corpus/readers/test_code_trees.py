from __future__ import annotations

from pathlib import Path

from source_reading import document, drops, gzipped, read, texts

from pipeline.corpus.document import Document


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_a_tree(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "src/main.rs": b"fn main() {}\n",
            "src/a.PY": b"x = 1\n",
            "Makefile": b"all:\n",
            "old.c.gz": gzipped(b"int x;\n"),
            "logo.png": b"\x89PNG\0",
            "notes.txt": b"words",
            ".git/hooks/x.py": b"hidden",
            "web/node_modules/a/index.js": b"theirs",
            "Third_Party/b.c": b"theirs",
            "web/jquery.min.js": b"x",
            "web/bundle.js": b"var a=1;" * 1000,
            "lib.c": b"\0\1\2 not C",
            "win.cs": "class Ö {}\r\n".encode("utf-16"),
        },
    )
    found = read("code", tmp_path)
    kept = {one.id: one.metadata["programming_language"] for one in found if isinstance(one, Document)}
    assert kept == {
        "Makefile": "makefile",
        "old.c.gz": "c",
        "src/a.PY": "python",
        "src/main.rs": "rust",
        "win.cs": "c#",
    }
    assert drops(found) == [
        ("vendored", "Third_Party/b.c"),
        ("binary", "lib.c"),
        ("minified", "web/bundle.js"),
        ("minified", "web/jquery.min.js"),
        ("vendored", "web/node_modules/a/index.js"),
    ]
    assert "Third_Party/b.c" in [one.id for one in read("code", tmp_path, vendored=True) if isinstance(one, Document)]
    assert texts(read("code", tmp_path, only=["rust"])) == ["fn main() {}\n"]


def test_code_is_not_repaired(tmp_path: Path) -> None:
    """A program that mends mojibake holds some."""
    lay_out(tmp_path, {"a.py": 'assert fix("Ã©tÃ©") == "été"\n'.encode()})
    assert document(read("code", tmp_path)).text == 'assert fix("Ã©tÃ©") == "été"\n'
    assert document(read("text", tmp_path)).text == 'assert fix("été") == "été"\n'


def test_markdown_without_its_front_matter(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "a.md": b"---\r\ntitle: x\ntags: [a]\n---\n\n# Heading\n\n*Words*\n\n---\n\nmore\n",
            "b.md": b"+++\ntitle = 'x'\n+++\nWords\n",
            "c.markdown": b"---\n\nA rule first, and no end.\n",
            "d.rst": b"Title\n=====\n\n.. note:: x\n",
            "e.txt": b"other",
        },
    )
    found = read("markdown", tmp_path)
    assert texts(found) == [
        "# Heading\n\n*Words*\n\n---\n\nmore\n",
        "Words\n",
        "---\n\nA rule first, and no end.\n",
        "Title\n=====\n\n.. note:: x\n",
    ]
    assert [one.metadata["format"] for one in found if isinstance(one, Document)] == ["markdown"] * 3 + ["rst"]
