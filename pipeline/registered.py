"""A model directory in the form that MLflow's registry loads: an `MLmodel` file, `model/`, `components/tokenizer/`.

It is laid out with no copy where the store's files lie on the same disk: the files are hard-linked, so that a
registered version stays as it is when the stage that made it runs again with other settings.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import yaml

from pipeline.files import TEMPORARY, write_text

TEXT_TO_TEXT = "text2text-generation"  # MLflow's word for encoder–decoders
CLASSES = {  # task: the class that loads the model, the pipeline that runs it
    "text-generation": ("AutoModelForCausalLM", "TextGenerationPipeline"),
    "text-classification": ("AutoModelForSequenceClassification", "TextClassificationPipeline"),
    TEXT_TO_TEXT: ("AutoModelForSeq2SeqLM", "Text2TextGenerationPipeline"),
}
NEEDS = ("mlflow", "torch", "transformers")


def task_of(model: Path) -> str:
    """What MLflow and `transformers` call the work of a model directory, by its config.json."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if any("SequenceClassification" in name for name in config.get("architectures") or ()):
        return "text-classification"
    return TEXT_TO_TEXT if config.get("is_encoder_decoder") else "text-generation"


def descriptions(model: Path, task: str, model_id: str, run_id: str) -> dict[str, str]:
    """The small files beside the weights, by name: what `mlflow.transformers` and `mlflow.pyfunc` need to load it."""
    weights, runner = CLASSES[task]
    versions = {name: metadata.version(name) for name in NEEDS}
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    flavor = {
        "code": None,
        "components": ["tokenizer"],
        "framework": "pt",
        "instance_type": runner,
        "model_binary": "model",
        "pipeline_model_type": weights,
        "source_model_name": str(config.get("model_type", "")),
        "task": task,
        "tokenizer_type": "AutoTokenizer",
        "transformers_version": versions["transformers"],
    }
    flavors: dict[str, object] = {"transformers": flavor}
    # From transformers 5 on no pipeline runs these; they are loaded with return_type="components".
    if task != TEXT_TO_TEXT or int(versions["transformers"].partition(".")[0]) < 5:
        flavors["python_function"] = {"loader_module": "mlflow.transformers", "env": {"virtualenv": "python_env.yaml"}}
    description = {
        "artifact_path": "model",
        "flavors": flavors,
        "mlflow_version": versions["mlflow"],
        "model_id": model_id,
        "model_size_bytes": sum(path.stat().st_size for path in model.iterdir() if path.is_file()),
        "run_id": run_id,
        "utc_time_created": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(sep=" "),
    }
    return {
        "MLmodel": yaml.safe_dump(description),
        "requirements.txt": "".join(f"{name}=={version}\n" for name, version in versions.items()),
        "python_env.yaml": yaml.safe_dump({"dependencies": ["-r requirements.txt"]}),
    }


def layout(model: Path) -> dict[str, Path]:
    """Where each file of a model directory goes: its weights and configuration, and the tokenizer a second time."""
    files = sorted(path for path in model.iterdir() if path.is_file() and not path.name.endswith(TEMPORARY))
    found = {f"model/{path.name}": path for path in files}
    tokenizer = [path for path in files if "token" in path.name or path.suffix == ".jinja" or path.name == "vocab.txt"]
    return found | {f"components/tokenizer/{path.name}": path for path in tokenizer}


def place(files: dict[str, Path], texts: dict[str, str], folder: Path) -> None:
    """Link (or, from another disk, copy) files into `folder`, and write the texts beside them. May be repeated."""
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:  # another disk, or a file system without links
            temporary = target.with_name(target.name + TEMPORARY)
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
    for name, text in texts.items():
        write_text(folder / name, text)
