"""Where a base model lies: a local directory, or a name on the Hugging Face hub, of which a local copy is made."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import DataError
from pipeline.progress import log

# Weights as safetensors only: what can run code when it is read is not even fetched.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "*.py")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def is_hub_name(base: str) -> bool:
    """Whether this is no folder here, and could be `user/model`, `model` or either with `@revision`."""
    return not Path(base).exists() and _NAME.fullmatch(base) is not None


def local_folder(base: str) -> Path:
    """The directory of a base model; one of the hub is fetched first, unless its files are here already.

    Raises: DataError when it is neither here nor can be fetched, saying what to do.
    """
    if not is_hub_name(base):
        return Path(base)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    name, _, revision = base.partition("@")
    disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED)))
    except Exception as error:  # requests, the hub and the file system raise any kind
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise DataError(
            f"{base}: no such folder, and as a name on the Hugging Face hub it cannot be fetched ({reason}); give the "
            "model's folder, or fetch it where there is a network and point HF_HOME at the copy"
        ) from error
    log.info(f"{base}: from the Hugging Face hub, commit {folder.name}")
    return folder
