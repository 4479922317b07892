"""torch.compile, a region at a time: one block is compiled and serves all that are alike, so that start-up does not
grow with depth; the loss, and the mask of documents on a GPU, are regions of their own.

What a compiled block computes differs in the last bits from what it computes eagerly (fused sums are taken in another
order); from start to start it is the same, with a cold cache or a warm one. Whether a training compiles is therefore a
function of its recipe and device, never of a clock: a resumed run chooses alike.

Compiled code stays in a folder that outlives the run. One that is damaged costs a compilation, not the run.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from pipeline.cluster.device import Device, processor_flags
from pipeline.model.loss import softmax_gradient
from pipeline.model.transformer import Transformer, document_blocks
from pipeline.progress import log

# Operations of a rank's whole training from which on `compile: auto` pays on a CPU. Measured: three graphs (a block,
# the same without gradients, the loss) cost 43 s of processor time more than not compiling with a cold cache, 3 s with
# a warm one; a compiled step takes a fifth less at about 0.2 TFLOP/s a rank. That is even after 5e13 operations; five
# times as many, so that nobody waits in vain on a machine that compiles slowly.
CPU_FLOPS = 2.5e14

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = "~/.cache/headwater/compiled"
AGAIN = 3  # log intervals in a row in which something was compiled, before that is a warning
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where torch reads it; its first use of it sets it, too
GIVEN = os.environ.get(VARIABLE, "")


def regions(model: nn.Module) -> list[nn.Module]:
    """The modules that are compiled, each for itself: a Transformer's blocks; of a Hugging Face model those that it
    says must stay in one piece, else all of it. Our LSTM has none: a layer is one call into oneDNN or cuDNN already."""
    if isinstance(model, Transformer):
        return list(model.blocks)
    if hasattr(model, "output_weight"):
        return []
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or [model]


class Compiler:
    """Compiles regions, and counts. graphs: of the model that came last; seconds: what they took before their first
    call (a backward pass with shapes that vary is compiled after it)."""

    def __init__(self) -> None:
        self.graphs, self.seconds = 0, 0.0
        self._told, self._running, self._hits_before = 0, 0, 0
        self.optimizer = False  # whether Muon's iteration is compiled

    def cache_hits(self) -> int:
        """Graphs (forward and backward apart) that were found in the folder."""
        from torch._dynamo.utils import counters

        return int(counters["inductor"]["fxgraph_cache_hit"]) - self._hits_before

    def first_step(self, title: str, seconds: float) -> None:
        """Say how long the first step took to come, and how much of that was compiling."""
        self._told = self.graphs
        log.info(
            f"{title}: the first step was done after {seconds:.1f} s, {self.seconds:.1f} of them for compiling "
            f"{self.graphs} graphs ({self.cache_hits()} parts came from the cache)"
        )

    def news(self, title: str) -> None:
        """Say what was compiled since the last call: some for a validation, whose shapes are others, but interval after
        interval is a guard that fails, and a training that compiles in place of learning."""
        more, self._told = self.graphs - self._told, self.graphs
        self._running = self._running + 1 if more else 0
        if self._running >= AGAIN:
            log.warning(
                f"{title}: compiled {more} more graphs, as in each of the last {self._running} log intervals; "
                "TORCH_LOGS=recompiles says why, compile=no does without"
            )
        elif more:
            log.info(f"{title}: compiled {more} graphs; {self.graphs} and {self.seconds:.1f} s until now")

    def late(self) -> Callable[[F], F]:
        """In place of the decorator by which DeepSpeed compiles Muon's iteration: that would look for a compiler where
        there may be none, takes a rank two seconds at each start, and on a CPU costs more than it gives."""

        def decorate(function: F) -> F:
            compiled: list[Any] = []

            @functools.wraps(function)
            def call(*arguments: Any, **named: Any) -> Any:
                if self.optimizer and not compiled:
                    compiled.append(torch.compile(function, backend=self._backend))
                return (compiled[0] if self.optimizer else function)(*arguments, **named)

            return cast("F", call)

        return decorate

    def compile(self, model: nn.Module, device: Device, cache: str) -> None:
        """From now on `model`'s regions run compiled; each is compiled when first called. cache: as in the recipe.

        A Transformer's shapes are the same in every step; another one (of a validation's last batch) is compiled for
        itself. A Hugging Face model's vary with its texts: the second one is compiled for all lengths.
        """
        open_cache(cache, device)
        self.graphs, self.seconds, self._told, self._running = 0, 0.0, 0, 0
        self._hits_before += self.cache_hits()
        self.optimizer = device.kind == "cuda"
        for region in regions(model):
            # Not region.compile(): that takes ZeRO-3's hooks, which fetch the region's weights, into the graph.
            dynamic = False if isinstance(model, Transformer) else None
            region.forward = torch.compile(region.forward, backend=self._backend, dynamic=dynamic)
        if isinstance(model, Transformer):
            compiled: Any = torch.compile(softmax_gradient, backend=self._backend, dynamic=False)
            model.softmax_gradient = compiled
            if device.kind == "cuda":
                model.document_blocks = torch.compile(document_blocks, backend=self._backend, dynamic=False)

    def _backend(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """Called by torch for each graph, with tensors of the shapes that it will see."""
        from torch._inductor.compile_fx import compile_fx

        began = time.perf_counter()
        spare = copy.deepcopy(graph)  # compile_fx changes what it is given
        try:
            compiled = compile_fx(graph, inputs)
        except Exception as error:  # whatever a truncated library or index raises; a fault of the code comes again
            _leave_damaged(error)
            compiled = compile_fx(spare, inputs)
        self.graphs, self.seconds = self.graphs + 1, self.seconds + time.perf_counter() - began
        return compiled


COMPILER = Compiler()  # one a process, as torch's own state is


def open_cache(folder: str, device: Device) -> Path:
    """Let torch keep what it compiles in a folder below `folder`, of this kind of machine: C++ is compiled for the very
    processor (-march=native), and another one may not know its instructions. Its last part counts how often one was
    found damaged."""
    kind = [torch.__version__, platform.machine(), device.name, *processor_flags()]
    root = Path(folder or GIVEN or FOLDER).expanduser() / hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        root = Path(tempfile.mkdtemp(prefix="headwater-compiled-"))  # its own: code from another's would be run
        log.warning(
            f"compile: {error}; what is compiled is not kept, set compile_cache to a folder that can be written"
        )
    found = root / str(max((int(path.name) for path in root.glob("[0-9]*") if path.name.isdecimal()), default=0))
    found.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = str(found)
    return found


def _leave_damaged(error: Exception) -> None:
    """Go on in the next folder, where later starts and ranks that meet the same damage follow."""
    from torch._inductor.utils import clear_caches

    damaged = Path(os.environ[VARIABLE])
    number = int(damaged.name) if damaged.name.isdecimal() else 0
    fresh = damaged.with_name(str(number + 1))
    fresh.mkdir(exist_ok=True)
    os.environ[VARIABLE] = str(fresh)
    clear_caches()
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    log.warning(f"compile: {why}; tries again in {fresh}; {damaged} can be deleted")
