"""What a stock MLflow client loads from the registry, for each kind of fine-tuned model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.manifest import Work
from pipeline.mlflow_store import tracking_uri
from pipeline.recipe import Recipe
from pipeline.registered import task_of
from pipeline.tracking import open_tracker, publish


def test_an_encoder_decoder_is_no_classifier(
    recipe: Recipe, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    shape = {
        f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
    }
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    ours = BartForConditionalGeneration(BartConfig(vocab_size=5, d_model=8, max_position_embeddings=16, **ids, **shape))
    made = recipe.workdir / "finetune" / "say"
    for path in model_directory.glob("token*"):
        (made / "model").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, made / "model")
    ours.save_pretrained(made / "model")
    say = {"task": "seq2seq", "train_files": "x.jsonl", "base": "there"}
    recipe = Recipe.model_validate({**recipe.model_dump(), "finetune": {"say": say}})
    work = Work("finetune.say", made, "key", {}, {})
    with open_tracker(recipe, work):
        work.finish((made / "model").iterdir())
    publish(recipe)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(recipe))
    mlflow.set_tracking_uri(tracking_uri(recipe))
    about = mlflow.models.get_model_info("models:/tiny-say/1").flavors["transformers"]
    assert (about["task"], about["pipeline_model_type"]) == ("text2text-generation", "AutoModelForSeq2SeqLM")
    loaded = mlflow.transformers.load_model("models:/tiny-say/1", return_type="components")
    tokens = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        same = loaded["model"](input_ids=tokens, decoder_input_ids=tokens).logits
        assert torch.equal(same, ours.eval()(input_ids=tokens, decoder_input_ids=tokens).logits)
    assert loaded["tokenizer"]("a b")["input_ids"] == [2, 3]


def test_a_decoder_writes_and_a_classifier_judges(model_directory: Path, tmp_path: Path) -> None:
    assert task_of(model_directory) == "text-generation"
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    assert task_of(tmp_path) == "text-classification"
