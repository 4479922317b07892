from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_corpora import Shard, prose, tree
from source_reading import gzipped, record

from pipeline.corpus.text_tars import read_text_tar, text_tars
from pipeline.errors import DataError
from pipeline.recipe import Corpus


def test_all_kinds_of_sources_at_once(tmp_path: Path, shard: Shard) -> None:
    """Web, mail, notes, tables and code in one corpus: the same bytes with one process and with two."""
    page = (
        "<html><body><div><div><div><p>" + "</p><p>".join(prose(1).split(". ")) + "</p></div></div></div></body></html>"
    )
    files = {
        "web.warc.gz": gzipped(record(page.encode(), "http://x.org/1"))
        + gzipped(record(page.encode(), "http://spam.org/2")),
        "mail.mbox": b"From a@x Mon May  1 10:00:00 2024\nSubject: x\n\n" + prose(2).encode() + b"\n",
        "notes.md": b"---\ntitle: x\n---\n" + prose(3).encode(),
        "old.txt": (prose(4) + "Où étions-nous, l'été passé ? Là-bas, à côté, déjà.").encode("cp1252"),
        "bad.txt": (prose(5) + "L’été à la forêt".encode().decode("cp1252")).encode(),
        "table.csv": ('text\n"' + prose(6) + '"\n').encode(),
        "torn.csv.gz": gzipped(b"text\nwords\n")[:-3],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("spam.org\n")
    sources = [
        {"name": "web", "type": "warc", "path": str(tmp_path / "web.warc.gz")},
        {"name": "mail", "type": "mail", "path": str(tmp_path / "mail.mbox")},
        {"name": "notes", "type": "markdown", "path": str(tmp_path)},
        {"name": "texts", "type": "text", "path": f"file://{tmp_path}/[ob][la]d.txt"},
        {"name": "tables", "type": "csv", "path": str(tmp_path)},
    ]
    rules = {"lists": {"blocked_urls": str(blocked)}}
    settings = {"validation": 0, "drop_duplicates": False, "bad_files": "skip", "rules": rules}
    made = shard(sources, **settings)
    found = {
        one.metadata["path"]: one for tar in text_tars(tmp_path / "run" / "text", "train") for one in read_text_tar(tar)
    }
    assert sorted(found) == ["bad.txt", "mail.mbox", "notes.md", "old.txt", "table.csv", "web.warc.gz"]
    assert found["web.warc.gz"].metadata["url"] == "http://x.org/1"
    assert "So ends chapter 3." in found["notes.md"].text
    assert "l'été passé" in found["old.txt"].text
    assert "L’été à la forêt" in found["bad.txt"].text
    decoded = {fact: sizes["documents"] for fact, sizes in made.counts["decoded"].items()}
    assert decoded == {"encoding": 1, "repaired": 1}
    assert {rule: sizes["documents"] for rule, sizes in made.counts["dropped"].items()} == {
        "bad_file": 1,
        "lists.blocked_urls": 1,
        "min_characters": 1,  # the row before the torn place
    }
    shard(sources, workdir=tmp_path / "again", workers=2, **settings)
    assert tree(tmp_path / "again" / "text") == tree(tmp_path / "run" / "text")
    with pytest.raises(
        DataError, match=r"source tables: .*torn\.csv\.gz: the compressed file ends early.*bad_files=skip"
    ):
        shard(sources, workdir=tmp_path / "strict", **(settings | {"bad_files": "fail"}))


def test_programs_and_prose_meet_rules_of_their_own(tmp_path: Path, shard: Shard) -> None:
    program = "".join(f"int add_{n}(int a, int b) {{\n    return a + b + {n};\n}}\n" for n in range(30))
    (tmp_path / "good.c").write_text(program)
    (tmp_path / "made.c").write_text("// auto-generated, do not edit\n" + program)
    (tmp_path / "prose.txt").write_text(" ".join(prose(7, 8).split("\n")))  # one long line, as no program has
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": program.replace("add", "sum")}) + "\n")
    sources: list[dict[str, Any]] = [
        {"name": "tree", "type": "code", "path": str(tmp_path)},
        {"name": "texts", "type": "text", "path": str(tmp_path / "prose.txt")},
        {"name": "records", "type": "jsonl", "path": str(tmp_path / "more.jsonl"), "rule_sets": ["code"]},
    ]
    sets = {"sets": ["code", "gopher_quality"], "code": {"max_line": 80}}
    made = shard(sources, validation=0, languages=["en"], rules=sets)
    kept = [one.id for path in text_tars(tmp_path / "run" / "text", "train") for one in read_text_tar(path)]
    assert sorted(kept) == ["good.c", "more.jsonl@0", "prose.txt"]
    assert made.counts["dropped"].keys() == {"code.max_generated_markers"}


@pytest.mark.parametrize(
    ("rule_sets", "rules", "told"),
    [
        (None, {"sets": ["code"]}, "rules.code is on, but judges no source"),
        (["c4"], {"sets": ["fineweb"]}, "source a: rule_sets names c4, which rules do not switch on"),
        (["c5"], {"sets": ["c4"]}, "c5"),
    ],
)
def test_rule_sets_that_judge_nothing_are_refused(
    rule_sets: list[str] | None, rules: dict[str, Any], told: str
) -> None:
    source = {"name": "a", "type": "text", "path": "a", "rule_sets": rule_sets}
    with pytest.raises(ValueError, match=told):
        Corpus.model_validate({"sources": [source], "rules": rules})
