"""Open a model directory (Hugging Face layout), ours or anyone's, with one clear line when it cannot be used.

Only safetensors are read, the network is not asked, and no code from the directory is run unless the caller says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.progress import log

LSTM = "headwater_lstm"
# Ends of the names of architectures that write no text.
SILENT = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForPreTraining",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_model_directory(folder: Path) -> dict[str, Any]:
    """Check that `folder` holds a model with its weights and tokenizer; returns its config.json.

    Also makes our own architecture known to `transformers` when the model is one of that kind.
    Raises: DataError naming the folder, what is missing, and the remedy.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such model directory; run `pipeline export` first, or give another folder")
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(f"{folder}: not a model directory (no config.json); give the folder that holds the model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise DataError(f"{path}: names no model_type; it is not the config.json of a Hugging Face model")
    if not any(folder.glob("*.safetensors")):
        pickles = [found.name for pattern in PICKLES for found in sorted(folder.glob(pattern))]
        if pickles:
            raise DataError(
                f"{folder}: its weights are pickled ({pickles[0]}), which can run code when read; "
                "save them as safetensors (save_pretrained does) and give that folder"
            )
        raise DataError(f"{folder}: no weights (*.safetensors); copy the whole model directory")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise DataError(f"{folder}: no tokenizer (tokenizer.json); copy it from the model's origin")
    if config["model_type"] == LSTM:
        import pipeline.model.lstm  # noqa: F401  registers the architecture
    return config


def load_tokenizer(folder: Path, remote_code: bool = False) -> Any:
    """The tokenizer of a model directory; where it has no padding token, its end-of-text token serves.

    Raises: DataError.
    """
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=remote_code, local_files_only=True)
    except Exception as error:  # transformers raises any kind for a damaged tokenizer
        raise DataError(f"{folder}: its tokenizer cannot be read ({_first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer: (model in eval mode, tokenizer).

    dtype: of the computation, a torch name. Raises: DataError when the folder is no usable causal model.
    """
    return load_model(folder, "AutoModelForCausalLM", dtype, device), load_tokenizer(folder)


def load_text_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """Load whatever writes text, causal or encoder–decoder, and its tokenizer: (model in eval mode, tokenizer).

    Raises: DataError when the folder is no usable model, or one that writes no text: a classifier, an encoder.
    """
    config = check_model_directory(folder)
    kind = str(next(iter(config.get("architectures") or []), ""))
    if kind.endswith(SILENT) and not (kind.endswith("PreTraining") and config.get("is_encoder_decoder")):
        raise DataError(
            f"{folder}: {kind} labels or reads text and writes none; give the folder of a causal or an "
            "encoder–decoder model"
        )
    auto = "AutoModelForSeq2SeqLM" if config.get("is_encoder_decoder") else "AutoModelForCausalLM"
    return load_model(folder, auto, dtype, device), load_tokenizer(folder)


def load_model(
    folder: Path,
    auto_class: str,
    dtype: str = "float32",
    device: str = "cpu",
    remote_code: bool = False,
    new_head: bool = False,
    **options: Any,
) -> Any:
    """Load a model directory with a class of `transformers` (AutoModel…) or of model/lstm.py, in eval mode.

    remote_code: whether Python code in the directory may run. new_head: a task's own layer of another size is drawn
    anew. options go to `from_pretrained`.
    Raises: DataError when files are missing or damaged, or weights are missing or of another shape than config.json
    says.
    """
    import torch
    import transformers

    config = check_model_directory(folder)
    kind = getattr(transformers, auto_class, None)
    if kind is None:  # our own architecture, asked for by its own name
        import pipeline.model.lstm

        kind = getattr(pipeline.model.lstm, auto_class)
    _quiet()
    try:
        model, found = kind.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=remote_code,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, in one line
            **options,
        )
    except Exception as error:  # transformers, safetensors and the config's own checks raise any kind
        raise DataError(
            f"{folder}: cannot be loaded as {auto_class} (model_type {config['model_type']}): {_first_line(error)}"
        ) from error
    # A new task's own layer starts fresh.
    head = ("score.", "classifier.", "pre_classifier.", "pooler.", "classification_head.")
    missing = [name for name in sorted(found["missing_keys"]) if not any(part in name for part in head)]
    for name, held, wanted in sorted(found["mismatched_keys"]):
        if not (new_head and any(part in name for part in head)):
            raise DataError(
                f"{folder}: {name} is {tuple(held)} in its weights and {tuple(wanted)} by its config.json; "
                "they do not belong together"
            )
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; the model would start at random"
        )
    if left := sorted(found["unexpected_keys"]):
        log.warning(f"{folder}: {len(left)} weights have no place in {auto_class} and are not used, as {left[0]}")
    return model.to(device).eval()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def _quiet() -> None:
    """No bars and advice of `transformers` between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
