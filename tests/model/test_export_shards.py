"""Export in files of a stated size: what they hold, that the logits are compared layer by layer, and the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import DataError, PipelineError
from pipeline.manifest import Work
from pipeline.model import export
from pipeline.model.build import build_model
from pipeline.model.weight_files import WeightFiles
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

Trained = Callable[..., tuple[Recipe, Work]]
SMALL = 30_000  # bytes: less than the embedding alone takes
FAMILIES: list[dict[str, Any]] = [
    {},
    {"tied_embeddings": False, "head_dim": 12},
    {"qkv_bias": True},
    {"qk_norm": True, "head_dim": 16},
]


@pytest.mark.parametrize("changes", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_load_in_stock_transformers_with_equal_logits(
    trained: Trained, changes: dict[str, Any], dtype: str
) -> None:
    recipe, work = trained(export={"shard_bytes": SMALL, "dtype": dtype}, **changes)
    made = export.run(recipe, work, Tracker())
    assert made.metrics["logit_difference"] <= 1e-5
    assert (made.metrics["rounding_difference"] > 1e-4) == (dtype == "bfloat16")
    files = sorted(work.folder.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    held = {path.name: load_file(path) for path in files}
    for weights in held.values():
        assert len(weights) == 1 or sum(weight.nbytes for weight in weights.values()) <= SMALL
    index = json.loads((work.folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == {name: file for file, weights in sorted(held.items()) for name in sorted(weights)}
    assert index["metadata"]["total_size"] == sum(w.nbytes for weights in held.values() for w in weights.values())
    model = AutoModelForCausalLM.from_pretrained(work.folder, dtype=torch.float32)
    found = export.read_trained(recipe.workdir / "checkpoints" / "final")
    ours = build_model(found.settings, found.vocab_size, seed=0)
    ours.load_state_dict({name: found.files.read(name).to(getattr(torch, dtype)) for name in found.files.shapes})
    tokens = torch.randint(320, (2, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, ours(tokens), rtol=1e-4, atol=5e-5)
    text = AutoTokenizer.from_pretrained(work.folder).apply_chat_template(
        [{"role": "user", "content": "rain"}], tokenize=False
    )
    assert text.startswith("<|im_start|>user\nrain")


def test_the_recurrent_model_is_cut_too(trained: Trained) -> None:
    recipe, work = trained(export={"shard_bytes": SMALL}, architecture="lstm")
    assert export.run(recipe, work, Tracker()).metrics["logit_difference"] <= 1e-5
    assert len(list(work.folder.glob("*.safetensors"))) > 1


def _other_values(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] += 3


def _other_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.down_proj.weight"] = weights["model.layers.1.mlp.down_proj.weight"][:-1].contiguous()


def _one_less(weights: dict[str, torch.Tensor]) -> None:
    weights.pop("model.layers.1.mlp.down_proj.weight")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_other_values, "logits by"), (_other_shape, "down_proj"), (_one_less, r"down_proj\.weight is not there")],
)
def test_shards_that_differ_are_refused(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, damage: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    recipe, work = trained(export={"shard_bytes": SMALL})
    write = export.write_directory

    def write_damaged(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        path = folder / index["weight_map"]["model.layers.1.mlp.down_proj.weight"]
        weights = load_file(path)
        damage(weights)
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_directory", write_damaged)
    with pytest.raises(PipelineError, match=said):
        export.run(recipe, work, Tracker())
    assert not (work.folder / "config.json").exists()


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    save_file({"secret": torch.zeros(1)}, tmp_path / "other.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"secret": "../other.safetensors"}}), encoding="utf-8"
    )
    with pytest.raises(DataError, match="lies in another folder"):
        WeightFiles(folder)
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json: cannot be read"):
        WeightFiles(folder)


MEASURE = """
import json, sys
from pathlib import Path
import torch
from pipeline.manifest import Work
from pipeline.model import export
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

torch.set_num_threads(1)
for run in map(Path, sys.argv[1:]):  # the first run loads the libraries
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    made = export.run(
        Recipe(workdir=run, export={"shard_bytes": 8_000_000}), Work("export", run / "model", "key", {}, {}), Tracker()
    )
print(json.dumps({"grown": peak() - before, **made.metrics}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_bounded_by_a_shard(trained: Trained, tmp_path: Path) -> None:
    """200 MB of weights, files of 8 MB: the peak grows by no more than a few files."""
    warm, _ = trained()
    warm.workdir.rename(tmp_path / "warm")
    recipe, _ = trained(dim=512, layers=16, heads=8, kv_heads=8, init_std=0.02)
    weights = (recipe.workdir / "checkpoints" / "final" / "weights.safetensors").stat().st_size
    assert weights > 200e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "warm"), str(recipe.workdir)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["logit_difference"] <= 1e-4
    # A layer is 13 MB, and the file that it is read from is mapped meanwhile.
    assert found["grown"] < 60e6, found
