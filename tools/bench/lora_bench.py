"""Fine-tuning with LoRA beside full fine-tuning: what is learnt, memory, time a step, size of a checkpoint.

Both run as the command runs them (`pipeline finetune`, one rank), on the same prompts and completions, from the same
random Llama, by default of the demo's shape; what is told are the numbers that stand in their manifests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import cores
from measure import Outcome
from texts import Corpus, read_jsonl

WORDS = 4096
MEGABYTES = 2.0  # of text at most: it makes a tokenizer and some hundred examples
RECIPE = """
name: lora
workdir: {folder}/run
tracking: {{enabled: false}}
finetune:
  full: {{{training}}}
  lora: {{{training}, lora: {{rank: {rank}}}}}
"""
TRAINING = (
    "task: sft, base: {folder}/base, train_files: {folder}/examples.jsonl, ranks: 1, epochs: 1, seq_len: 128, "
    "max_validation_examples: 16, global_batch: 16, micro_batch: 8, precision: {precision}, self_test: no"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    Corpus.add_options(parser)
    parser.add_argument("--dim", type=int, default=192, help="width of the model (default the demo's, 192)")
    parser.add_argument("--layers", type=int, default=4, help="its layers (default the demo's, 4)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (default 16)")
    parser.add_argument("--examples", type=int, default=320, help="16 a step, a few held out (default 320)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--workdir", type=Path, help="where all of it goes; default a temporary folder")


def run(options: argparse.Namespace) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="bench-lora-", dir=options.workdir) as place:
        folder = Path(place)
        options.megabytes = min(options.megabytes, MEGABYTES)
        texts = [document["text"] for document in read_jsonl(Corpus.gather(options, folder).path)]
        _write_base(folder / "base", options, texts)
        _write_examples(folder / "examples.jsonl", options.examples, texts)
        training = TRAINING.format(folder=folder, precision=options.precision)
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, training=training, rank=options.rank))
        found = {task: _finetune(folder, task) for task in ("full", "lora")}
    rows: list[tuple[str, str, str]] = [
        (label, *(form.format(one[key]) for one in found.values()))  # type: ignore[misc]
        for label, key, form in (
            ("weights that are learnt", "trainable_parameters", "{:,}"),
            ("share of all", "share", "{:.2%}"),
            ("seconds a step", "step_seconds", "{:.3f}"),
            ("peak memory of the process, MiB", "peak", "{:,.0f}"),
            ("a checkpoint, MB", "checkpoint", "{:,.1f}"),
            ("held-out loss at the end", "loss", "{:.3f}"),
        )
    ]
    lines = [
        f"Llama of {found['full']['parameters']:,} weights, 1 rank on {cores()} cores, {options.precision}, 16 "
        f"examples a step, {found['full']['steps']} steps, LoRA of rank {options.rank}; merged, its logits differ by "
        f"{found['lora']['merged']:.1e} of the largest:",
        "",
        "| | full | LoRA |",
        "|---|---:|---:|",
        *(f"| {label} | {full} | {lora} |" for label, full, lora in rows),
    ]
    return Outcome([], lines=lines, facts=found)


def _finetune(folder: Path, task: str) -> dict[str, Any]:
    """Run one task; the numbers of its manifest. Raises: SystemExit with the end of its output when it fails."""
    print(f"{task} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pipeline", "finetune", str(folder / "recipe.yaml"), "--task", task]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        raise SystemExit(f"{task} failed with status {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    made = folder / "run" / "finetune" / task
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    counts, metrics = manifest["counts"], manifest["metrics"]
    return {
        "parameters": counts["parameters"],
        "trainable_parameters": counts["trainable_parameters"],
        "share": counts["trainable_parameters"] / counts["parameters"],
        "steps": counts["steps_done"],
        "step_seconds": metrics["step_seconds"],
        "peak": metrics["peak_memory_bytes"] / 2**20,
        "checkpoint": sum(path.stat().st_size for path in made.glob("checkpoints/step-*/*")) / 1e6,
        "loss": metrics["validation/loss"],
        "merged": metrics.get("merged_difference", 0.0),
    }


def _write_base(folder: Path, options: argparse.Namespace, texts: list[str]) -> None:
    """A Llama with random weights, and a tokenizer of the corpus with the demo's special tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|pad|>"]
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[0], pad_token=special[1])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=options.dim,
        intermediate_size=-(-options.dim * 8 // 3 // 64) * 64,
        num_hidden_layers=options.layers,
        num_attention_heads=options.dim // 64,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _write_examples(path: Path, count: int, texts: list[str]) -> None:
    """The beginning of a text, and how it goes on."""
    long = [text.strip() for text in texts if len(text.strip()) > 300][:count]
    rows = [{"prompt": text[:200], "completion": text[200:280]} for text in long if text[200:280].strip()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
