"""`train` with Hugging Face's Trainer and DeepSpeed ZeRO-1, on LlamaForCausalLM of the same shape."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_cases import Case
from train_clock import Clock, Tokens

from pipeline.cluster.device import Device
from pipeline.cluster.ranks import Ranks
from pipeline.config import find_deepspeed_config
from pipeline.model.transformer import ffn_width
from pipeline.train.steps import split_batch


def train(case: Case, clock: Clock, ranks: Ranks, device: Device, folder: Path) -> None:
    """Train until the clock says that it is enough."""
    import json

    os.environ.setdefault("DS_ACCELERATOR", device.kind)
    if device.kind == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    import deepspeed
    from transformers import Trainer, TrainerCallback, TrainingArguments

    deepspeed.ops.__compatible_ops__ = {}  # operators that it would try to build, with a compiler

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if clock.over():
                raise _Enough

    size = case.size
    micro, accumulation = split_batch(size.sequences, size.micro, ranks.world_size)
    zero = json.loads(find_deepspeed_config("zero1").read_text(encoding="utf-8"))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=1_000_000,
        learning_rate=1e-4,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=case.dtype == "bf16",
        torch_compile=case.compiled,
        deepspeed={
            **zero,
            "bf16": {"enabled": case.dtype == "bf16"},
            "gradient_clipping": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
        use_cpu=device.kind == "cpu",
        dataloader_pin_memory=device.kind == "cuda",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=_model(case), args=arguments, train_dataset=_Rows(case), callbacks=[Watch()])
    try:
        trainer.train()
    except _Enough:
        torch.distributed.destroy_process_group()


class _Enough(Exception):
    """As long as was asked for."""


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, case: Case) -> None:
        self._tokens = Tokens(case.size)

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        row = self._tokens.rows([place])[0, :-1]
        return {"input_ids": row, "labels": row}


def _model(case: Case) -> Any:
    """Hugging Face's model with fresh weights in fp32, as Trainer's users have it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = case.size.model
    config = LlamaConfig(
        vocab_size=case.size.words,
        hidden_size=model.dim,
        intermediate_size=ffn_width(model),
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads or model.heads,
        head_dim=model.head_width,
        max_position_embeddings=model.max_seq_len,
        tie_word_embeddings=model.tied_embeddings,
        rms_norm_eps=model.norm_eps,
        use_cache=False,
    )
    torch.manual_seed(1)
    return LlamaForCausalLM(config)
