"""What `pipeline run` says last: what was made and where, how good it is, and commands to be typed as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.closing import closing_lines, quality_lines
from pipeline.config import load_recipe
from pipeline.files import write_json
from pipeline.manifest import Work


def test_quality_stands_beside_what_it_must_beat(tmp_path: Path) -> None:
    recipe = load_recipe("demo", [f"workdir={tmp_path}"])
    write_json(tmp_path / "evaluation" / "language_model.json", {"bits_per_byte": 1.5, "baselines": {"xz -9": 1.6}})
    write_json(tmp_path / "evaluation" / "summarize.json", {"base": {"rougeL": 0.1}, "finetuned": {"rougeL": 0.25}})
    write_json(tmp_path / "evaluation" / "package.json", {"accuracy": 0.8, "majority_accuracy": 0.5, "macro_f1": 0.7})
    assert [line.strip() for line in quality_lines(recipe)] == [
        "pretrained: 1.500 bits per byte (xz -9 1.600)",
        "summarize: ROUGE-L 0.250 (before fine-tuning 0.100)",
        "package: accuracy 80.0% (majority class 50.0%), macro-F1 0.700",
    ]


def test_the_sum_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mine.yaml").write_text(f"workdir: {tmp_path / 'a run'}\n", encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    found = {"bits_per_byte": 1.5, "baselines": {"xz -9": 1.6}}
    write_json(recipe.workdir / "evaluation" / "language_model.json", found)
    (recipe.workdir / "text").mkdir()
    (recipe.workdir / "text" / "a.tar").write_bytes(bytes(3_000_000))
    made = Work("shard", recipe.workdir / "text", "key", {}, {}).finish([recipe.workdir / "text" / "a.tar"], {})
    words = ["workdir=a run", "pretrain.tokens=4e6"]
    lines = closing_lines(recipe, {"shard": made}, "mine.yaml", words)
    assert lines[1] == f"Made in {recipe.workdir} (seed {recipe.seed}):"
    assert lines[2].split()[:3] == ["shard", "3.0", "MB"]
    assert lines[2].endswith(f" s   {recipe.workdir / 'text'}")
    assert "  pretrained: 1.500 bits per byte (xz -9 1.600)" in lines
    # Quoted for a shell; settings that say where the run lies, and no others.
    assert any(line.endswith("generate mine.yaml 'workdir=a run' --prompt 'def '") for line in lines)
    tried = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"prompts": ("今天", "the")})})
    assert any(line.endswith("--prompt '今天'") for line in closing_lines(tried, {"shard": made}, "mine.yaml", words))
    assert any("mlflow ui --backend-store-uri sqlite:///" in line for line in lines)
    assert lines[-1] == f"Report: {recipe.workdir / 'report.html'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere")
    assert not any("mlflow" in line for line in closing_lines(recipe, {"shard": made}, "mine.yaml", words))
