"""Whether a model directory gives the logits of the model that was trained, in memory that is bounded by a shard.

Either side runs its own code: ours is pipeline/model/transformer.py, theirs what `transformers` makes of config.json.
What is larger than a shard is computed layer by layer: a layer's weights are read when it is reached, and dropped
behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.model.build import build_model
from pipeline.model.directory import load_model
from pipeline.model.weight_files import WeightFiles
from pipeline.recipe import ModelSettings

Read = Callable[[str], Tensor]


def compare(
    settings: ModelSettings, vocab_size: int, trained: WeightFiles, folder: Path, tokens: Tensor, dtype: str, room: int
) -> tuple[float, float]:
    """Largest difference of a logit between the trained model and the directory, both computed in fp32, relative to
    the largest logit: with the model's weights rounded to `dtype` as the directory's are, and with them as trained.

    tokens: (1, seq). room: bytes of weights in fp32 that may be loaded whole, by `from_pretrained`; what is larger, or
    a part of it, is read layer by layer.
    Raises: PipelineError when the directory's weights are not those that its config.json asks for.
    """
    whole = 4 * trained.parameters <= room or settings.architecture == "lstm"
    theirs = load_model(folder, "AutoModelForCausalLM") if whole else _their_layers(folder)
    with torch.inference_mode():
        expected = theirs(input_ids=tokens, use_cache=False).logits
        del theirs
        exact = _ours(settings, vocab_size, trained.read, whole)(tokens)
        rounding = _difference(exact, expected)
        if dtype == "float32":
            return rounding, rounding
        del exact
        kind = getattr(torch, dtype)
        rounded = _ours(settings, vocab_size, lambda name: trained.read(name).to(kind).float(), whole)(tokens)
        return _difference(rounded, expected), rounding


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max()) / max(float(ours.abs().max()), 1e-30)


def _ours(settings: ModelSettings, vocab_size: int, read: Read, whole: bool) -> nn.Module:
    with torch.device("meta"):
        model = build_model(settings, vocab_size, seed=0)
    if settings.architecture == "lstm":
        model = model.to_empty(device="cpu")  # torch.nn.LSTM keeps its weights in a list of its own
        model.load_state_dict({name: read(name) for name in model.state_dict()})
        return model.eval()
    return read_on_the_way(model, "" if whole else "blocks.", read).eval()


def _their_layers(folder: Path) -> Any:
    """The directory's model as `transformers` builds it, its layers' weights still on disk."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    files = WeightFiles(folder)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    if wrong := sorted(expected.items() ^ files.shapes.items()):
        raise PipelineError(f"{folder}: {wrong[0][0]} is not there, or not of the shape that config.json asks for")
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # made of the config, on no disk
    read_on_the_way(model, "model.layers.", lambda name: files.read(name).float())
    model.tie_weights()
    return model.eval()


def read_on_the_way(model: nn.Module, layers: str, read: Read) -> nn.Module:
    """Give weights to a model that has none (its device is `meta`): all at once, but those of its layers when they are
    reached, and until they are left.

    layers: how the names of layers begin, before their number; empty: all at once. read: a weight by name.
    """
    names = [name for name, _ in model.named_parameters()]
    now = [name for name in names if not layers or not name.startswith(layers)]
    model.load_state_dict({name: read(name) for name in now}, strict=False, assign=True)
    if not layers:
        return model

    def fetch(prefix: str) -> Callable[..., None]:
        def before(module: nn.Module, *_: Any) -> None:
            held = {name: read(prefix + name) for name, _ in module.named_parameters()}
            module.load_state_dict(held, assign=True)

        return before

    def drop(module: nn.Module, *_: Any) -> None:
        module.to("meta")

    for number, layer in enumerate(model.get_submodule(layers.rstrip(".")).children()):
        layer.register_forward_pre_hook(fetch(f"{layers}{number}."))
        layer.register_forward_hook(drop)
    return model
