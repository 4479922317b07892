"""A whole run by the real command: what is there, what a second run does, who else can read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import Pipeline

from pipeline import manifest as manifests

STAGES = ("shard", "tokenizer", "tokenize", "pretrain", "export", "finetune.summarize", "finetune.package", "evaluate")
FOLDERS = (
    "text",
    "tokenizer",
    "tokens",
    "checkpoints",
    "model",
    "finetune/summarize",
    "finetune/package",
    "evaluation",
)


def fingerprints(workdir: Path) -> dict[str, str]:
    return {folder: manifests.load(workdir / folder).fingerprint for folder in FOLDERS}


def test_everything_that_the_design_names_is_there(tiny_run: Path) -> None:
    names = {path.relative_to(tiny_run).as_posix() for path in tiny_run.rglob("*")}
    for name in (
        "recipe.yaml",
        "text/manifest.json",
        "tokenizer/tokenizer.json",
        "tokens/index.json",
        "tokens/members.npy",
        "checkpoints/final/weights.safetensors",
        "model/config.json",
        "model/model.safetensors",
        "finetune/summarize/model/model.safetensors",
        "finetune/package/model/model.safetensors",
        "evaluation/language_model.json",
        "evaluation/summarize.json",
        "evaluation/package.json",
        "evaluation/samples.json",
        "report.html",
        "logs/pretrain.log",
    ):
        assert name in names, name
    assert not [name for name in names if name.endswith(".tmp")]
    for folder in FOLDERS:
        manifests.verify(tiny_run / folder, manifests.load(tiny_run / folder), checksums=True)


def test_the_last_lines_say_what_was_made_how_good_it_is_and_what_to_try(tiny_run: Path) -> None:
    said = (tiny_run / "said.txt").read_text(encoding="utf-8")
    for words in ("seed 1234", "bits per byte (gzip -9", "ROUGE-L", "majority class", "generate", "mlflow", "my.yaml"):
        assert words in said, words


def test_a_second_run_skips_every_stage_and_says_why(tiny_run: Path, tiny_recipe: Path, pipeline: Pipeline) -> None:
    before = fingerprints(tiny_run)
    again = pipeline("run", tiny_recipe, f"workdir={tiny_run}")
    assert again.returncode == 0, again.stderr
    skipped = [line for line in again.stderr.splitlines() if "skipped: made on" in line and "equal inputs" in line]
    assert [line.split()[0] for line in skipped] == list(STAGES)
    assert fingerprints(tiny_run) == before


def test_a_folder_of_a_run_stands_for_its_recipe(tiny_copy: Path, pipeline: Pipeline) -> None:
    done = pipeline("evaluate", tiny_copy)
    assert done.returncode == 0, done.stderr
    assert "evaluate             skipped: made on" in done.stderr


@pytest.mark.parametrize(
    ("word", "unchanged"),
    [
        ("evaluate.max_examples=3", STAGES[:7]),
        ("finetune.package.seq_len=32", STAGES[:6]),
        ("pretrain.log_interval=3", STAGES),  # decides nothing that is made
    ],
)
def test_a_changed_key_reruns_what_depends_on_it_and_nothing_else(
    tiny_run: Path, tiny_recipe: Path, pipeline: Pipeline, word: str, unchanged: tuple[str, ...]
) -> None:
    shown = pipeline("run", tiny_recipe, f"workdir={tiny_run}", word, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    skipped = [line.split()[0] for line in shown.stdout.splitlines() if line.split()[1:2] == ["skip"]]
    assert tuple(skipped) == unchanged


def test_what_was_made_before_a_change_is_kept(tiny_copy: Path, tiny_recipe: Path, pipeline: Pipeline) -> None:
    old = (tiny_copy / "tokens" / "index.json").read_bytes()
    done = pipeline("tokenize", tiny_recipe, f"workdir={tiny_copy}", "tokenize.member_tokens=20000")
    assert done.returncode == 0, done.stderr
    assert "member_tokens was 50000, is 20000" in done.stderr
    assert (tiny_copy / "previous" / "tokenize-1" / "index.json").read_bytes() == old
    assert (tiny_copy / "tokens" / "index.json").read_bytes() != old


STOCK = """
import sys
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
import torch
run = sys.argv[1]
for folder in ("model", "finetune/summarize/model"):
    tokenizer = AutoTokenizer.from_pretrained(f"{run}/{folder}")
    model = AutoModelForCausalLM.from_pretrained(f"{run}/{folder}")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "def f(): pass"}], add_generation_prompt=True,
                                         return_tensors="pt", return_dict=True)
    made = model.generate(**chat, max_new_tokens=4, do_sample=False)
    assert made.shape[1] > chat["input_ids"].shape[1]
model = AutoModelForSequenceClassification.from_pretrained(f"{run}/finetune/package/model")
tokenizer = AutoTokenizer.from_pretrained(f"{run}/finetune/package/model")
with torch.no_grad():
    label = model(**tokenizer("Return the mean of an array.", return_tensors="pt")).logits.argmax().item()
assert model.config.id2label[label] in {"numpy", "stdlib"}
assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"]
"""


def test_stock_transformers_runs_the_three_models(tiny_run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tiny_run)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_stock_mlflow_client_finds_runs_metrics_and_lineage(tiny_run: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tiny_run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert len(parents) == 1
    assert len(children) == len(STAGES)
    pretrain = next(run for run in children if "pretrain" in (run.info.run_name or ""))
    history = client.get_metric_history(pretrain.info.run_id, "loss")
    assert history
    assert pretrain.inputs.dataset_inputs
    assert client.search_model_versions("name='tiny'")


def test_generate_continues_a_prompt_and_chats(tiny_run: Path, tiny_recipe: Path, pipeline: Pipeline) -> None:
    first, second = (
        pipeline("generate", tiny_recipe, f"workdir={tiny_run}", "--prompt", "def ", "--max-tokens", "8", *words)
        for words in ((), ("--chat", "--task", "summarize"))
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("def ")
    assert second.returncode == 0, second.stderr


def test_the_report_is_one_file_without_scripts(tiny_run: Path) -> None:
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "bits per byte" in page.lower()


def test_manifests_form_one_chain(tiny_run: Path) -> None:
    (source,) = manifests.load(tiny_run / "checkpoints").counts["mix"].values()
    assert source["weight"] == 1
    assert source["epochs"] < 1

    def inputs(folder: str) -> dict[str, str]:
        return dict(json.loads((tiny_run / folder / "manifest.json").read_text(encoding="utf-8"))["inputs"])

    made = fingerprints(tiny_run)
    assert inputs("tokens")["shard"] == made["text"]
    assert inputs("checkpoints")["tokenize"] == made["tokens"]
    assert inputs("model")["pretrain"] == made["checkpoints"]
    assert inputs("evaluation")["finetune.package"] == made["finetune/package"]
