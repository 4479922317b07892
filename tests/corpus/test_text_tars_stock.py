"""Stock `webdataset` reads what the shard stage makes: nothing of ours is imported here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import webdataset
import yaml


def test_stock_webdataset_reads_text_tars(tmp_path: Path) -> None:
    texts = {f"n{number}": f"Número {number}: " + "中文 and English words in one line. " * 20 for number in range(40)}
    corpus = tmp_path / "my texts.jsonl"
    corpus.write_text("".join(json.dumps({"key": key, "body": text}) + "\n" for key, text in texts.items()))
    source = {"name": "mine", "type": "jsonl", "path": str(corpus), "text_field": "body", "id_field": "key"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "workdir": str(tmp_path / "run"),
                "corpus": {"sources": [source | {"language": "en"}], "validation": 0.2, "shard_bytes": 10_000},
                "tracking": {"enabled": False},
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "shard", str(recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for part in ("train", "validation"):
        tars = sorted(map(str, (tmp_path / "run" / "text" / part).glob("*.tar")))
        dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode().to_tuple("txt", "json")
        samples = list(dataset)
        assert samples
        found |= {facts["id"]: text for text, facts in samples}
        assert all(facts["source"] == "mine" and facts["language"] == "en" for _, facts in samples)
    assert found == texts
