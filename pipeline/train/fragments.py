"""Where a rank keeps which part of each parameter: fp32 weights and optimizer states, as live views into DeepSpeed.

A fragment is addressed by (parameter, state, offset in the flattened parameter). DeepSpeed lays parameters into flat
buffers and cuts those among ranks, by other rules for each ZeRO stage; the address is the same for all, so that what
one world wrote any other can read. Read from DeepSpeed 0.19 (utils/tensor_fragment.py, zero/stage_1_and_2.py,
zero/stage3.py, bf16_optimizer.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster.ranks import Ranks
from pipeline.errors import PipelineError

WEIGHT = "weight"  # the state that is the fp32 weight itself; the others bear the optimizer's names (exp_avg…)
MOMENTUM = "momentum_buffer"  # Muon's
COUNTS = ("global_steps", "global_samples", "skipped_steps")


@dataclass(frozen=True)
class Fragment:
    """`tensor`: elements `offset` … of the flattened `state` of parameter `name`; a 1-D view of live memory."""

    name: str
    state: str
    offset: int
    tensor: Tensor


@dataclass(frozen=True)
class Piece:
    """Elements `offset` … `offset + length` of a flattened parameter lie at `start` of a block's tensor.

    own: whether this rank writes it; others may hold a copy."""

    name: str
    offset: int
    start: int
    length: int
    own: bool = True


@dataclass(frozen=True)
class Block:
    """One tensor that the optimizer updates, and its states.

    weight: 1-D view. key: the tensor by which `states` (the optimizer's own mapping) knows it; None: nothing is learnt.
    members: parameters whose scalars (AdamW's step) this block shares, of other ranks too. momentum: where Muon's
    momentum lies when it is not laid out like the weights.
    """

    weight: Tensor
    pieces: list[Piece]
    members: list[str]
    key: Tensor | None = None
    states: Any = field(default_factory=dict)
    momentum: list[Piece] | None = None

    def state(self) -> dict[str, Any]:
        """The optimizer's entry for this block, empty before the first step."""
        found: dict[str, Any] = {} if self.key is None else self.states.get(self.key, {})
        return found

    def laid_out(self, state: str) -> list[Piece]:
        """The pieces of a state's tensor."""
        return self.momentum if state == MOMENTUM and self.momentum is not None else self.pieces

    def fragments(self) -> Iterator[Fragment]:
        """Every fragment that this rank writes."""
        owned = {piece.name: piece for piece in self.pieces if piece.own}
        for state, tensor in ((WEIGHT, self.weight), *_tensors(self.state())):
            for piece in self.laid_out(state):
                own = owned.get(piece.name)
                if own is not None:
                    start = piece.start + own.offset - piece.offset
                    yield Fragment(own.name, state, own.offset, _flat(tensor).narrow(0, start, own.length))

    def places(self) -> Iterator[Fragment]:
        """Every place that must be filled when a checkpoint is loaded."""
        for state, tensor in ((WEIGHT, self.weight), *_tensors(self.state())):
            for piece in self.laid_out(state):
                yield Fragment(piece.name, state, piece.offset, _flat(tensor).narrow(0, piece.start, piece.length))

    def scalars(self) -> dict[str, float]:
        """Numbers in the optimizer's entry (AdamW's step)."""
        return {name: float(value) for name, value in self.state().items() if not _is_state(name, value)}

    def prepare(self, kinds: Mapping[str, torch.dtype], scalars: Mapping[str, float]) -> None:
        """Make the states and numbers that a checkpoint has, the states as zeros; what it has not is zero or goes."""
        kinds = {name: kind for name, kind in kinds.items() if name != WEIGHT}
        if self.key is None or not (kinds or scalars or self.state()):
            return
        entry = self.states.setdefault(self.key, {})
        for name in [name for name, value in entry.items() if not _is_state(name, value) and name not in scalars]:
            del entry[name]
        for _, tensor in _tensors(entry):
            tensor.zero_()
        for name, kind in kinds.items():
            pieces = self.laid_out(name)
            if name not in entry and pieces is self.pieces:
                entry[name] = torch.zeros_like(self.key, dtype=kind, requires_grad=False)
            elif name not in entry and pieces:
                entry[name] = torch.zeros(sum(piece.length for piece in pieces), dtype=kind, device=self.key.device)
        for name, number in scalars.items():
            if isinstance(entry.get(name), (int, float)):
                entry[name] = type(entry[name])(number)
            else:  # torch's fused AdamW wants it beside the weights
                entry[name] = torch.full((), number, dtype=torch.float32, device=self.key.device)


def shapes(engine: Any) -> dict[str, list[int]]:
    """Everything of the model that is saved (`_stored`) → its shape, in the model's order."""
    return {name: list(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in _stored(engine).items()}


def blocks(engine: Any, ranks: Ranks) -> list[Block]:
    """All that this rank holds of the training state.

    Raises: PipelineError when some of a parameter is nowhere, which a new version of DeepSpeed might bring about.
    """
    stored = _stored(engine)
    names = {id(tensor): name for name, tensor in stored.items()}
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):
        found = _zero_3(optimizer, names)
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        found = _zero_1_and_2(optimizer, names)
    elif hasattr(optimizer, "fp32_groups_flat_partition"):
        found = _flat_groups(
            optimizer, optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, optimizer.optimizer.state, names
        )
    else:
        learnt = [weight for group in optimizer.param_groups for weight in group["params"]]
        found = [_plain(weight, names[id(weight)], ranks, number, optimizer) for number, weight in enumerate(learnt)]
    covered = {name for block in found for name in block.members}
    rest = [(name, tensor) for name, tensor in stored.items() if name not in covered]
    found += [_buffer(tensor, name, ranks, number) for number, (name, tensor) in enumerate(rest)]
    return found


def refresh(engine: Any) -> None:
    """Make the weights that the model computes with from the fp32 ones that were just put in. All ranks together."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):
        for low, high in zip(
            optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            if low.data_ptr() != high.data_ptr():
                low.data.copy_(high.data)
        for flat, parts in zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups, strict=True):
            for part, values in zip(parts, optimizer.unflatten(flat, parts), strict=True):
                part.data = values.data
        optimizer.checkpoint_event_epilogue()  # small parameters are whole on every rank; a node's copies (ZeRO++) go
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def before_loading(engine: Any) -> None:
    """ZeRO-3: give back what is gathered. All ranks together."""
    if hasattr(engine.optimizer, "fp16_partitioned_groups_flat"):
        engine.optimizer.checkpoint_event_prologue()


def counters(engine: Any) -> dict[str, Any]:
    """DeepSpeed's own count of steps, and the loss scale of fp16, as JSON."""
    scaler = engine.torch_autocast_z0_gradscaler
    return {
        "counts": {name: getattr(engine, name) for name in COUNTS},
        "loss_scaler": {
            name: value
            for name, value in vars(getattr(engine.optimizer, "loss_scaler", object)).items()
            if isinstance(value, (bool, int, float)) and not name.startswith("_")
        },
        "grad_scaler": {} if scaler is None else scaler.state_dict(),
    }


def set_counters(engine: Any, saved: Mapping[str, Any]) -> None:
    """Put them back. A step always begins with its first micro-batch."""
    for name, value in saved["counts"].items():
        setattr(engine, name, value)
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in saved["loss_scaler"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
    if engine.torch_autocast_z0_gradscaler is not None and saved["grad_scaler"]:
        engine.torch_autocast_z0_gradscaler.load_state_dict(saved["grad_scaler"])


def _stored(engine: Any) -> dict[str, Tensor]:
    """Parameters that are learnt, by their first name, and the buffers that a state dict holds. What is frozen is the
    base's own, from which every start builds it again."""
    model = engine.module
    found: dict[str, Tensor] = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    temporary = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return found | {name: buffer for name, buffer in model.named_buffers() if name not in temporary}


def _zero_1_and_2(optimizer: Any, names: Mapping[int, str]) -> list[Block]:
    found = _flat_groups(
        optimizer, optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, optimizer.optimizer.state, names
    )
    if optimizer.cpu_offload or "Muon" not in type(optimizer.optimizer).__name__:
        return found
    for number, (block, group) in enumerate(zip(found, optimizer.bit16_groups, strict=True)):
        if not getattr(group[0], "use_muon", False):
            continue
        # Momentum is kept whole for each matrix that the partition touches, one after the other, without padding.
        momentum, start = [], 0
        for weight in optimizer.params_in_partition[number]:
            momentum.append(Piece(names[id(weight)], 0, start, weight.numel()))
            start += weight.numel()
        found[number] = Block(block.weight, block.pieces, block.members, block.key, block.states, momentum)
    return found


def _flat_groups(
    optimizer: Any, groups: list[list[Tensor]], partitions: list[Tensor], states: Any, names: Mapping[int, str]
) -> list[Block]:
    """ZeRO-1, ZeRO-2 and BF16_Optimizer: one flat partition a parameter group."""
    found = []
    for group, partition in zip(groups, partitions, strict=True):
        pieces = []
        for weight in group:
            mapping: Any = weight._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                pieces.append(Piece(names[id(weight)], low.start, high.start, high.numel))
        members = [names[id(weight)] for weight in group]
        found.append(Block(partition.data, pieces, members, partition, states))
    return found


def _zero_3(optimizer: Any, names: Mapping[int, str]) -> list[Block]:
    """Every parameter is cut into equal parts, the last one padded; sub-groups of them lie in flat buffers."""
    found = []
    for number, group in enumerate(optimizer.fp16_groups):
        if optimizer._swappable_optimizer_subgroup(number):
            raise PipelineError("ZeRO-3 with optimizer states on NVMe cannot be saved; use offload to cpu")
        pieces = []
        for weight in group:
            _, start, length = optimizer.grad_position[optimizer.get_param_id(weight)]
            offset = optimizer._get_param_partition_rank(weight) * length
            real = min(length, weight.ds_numel - offset)
            if real > 0:
                pieces.append(Piece(names[id(weight)], offset, start, real))
        flat = optimizer.fp32_partitioned_groups_flat[number]
        states = optimizer.optimizer.state
        on_device = optimizer.offload_optimizer and optimizer.subgroup_to_device[number] != "cpu"
        if on_device and not (optimizer.use_muon and optimizer.sub_groups_using_muon[number]):
            states = optimizer.backup_optimizer.state  # offload of a share only
        found.append(Block(flat.data, pieces, [names[id(weight)] for weight in group], flat, states))
    return found


def _plain(weight: Tensor, name: str, ranks: Ranks, number: int, optimizer: Any) -> Block:
    """ZeRO-0: every rank has all of it, and they take turns in writing."""
    piece = Piece(name, 0, 0, weight.numel(), own=number % ranks.world_size == ranks.rank)
    return Block(weight.data.view(-1), [piece], [name], weight, optimizer.state)


def _buffer(tensor: Any, name: str, ranks: Ranks, number: int) -> Block:
    """What the model holds beside its weights: every rank has all of it."""
    piece = Piece(name, 0, 0, tensor.numel(), own=number % ranks.world_size == ranks.rank)
    return Block(tensor.data.view(-1), [piece], [name])


def _tensors(entry: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in entry.items() if _is_state(name, value))


def _is_state(name: str, value: Any) -> bool:
    return name != "step" and isinstance(value, Tensor)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1)
