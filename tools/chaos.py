"""SIGKILLs at random moments, and a comparison with an unbroken run; `tools/chaos` starts it. See EXAMPLES."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Before torch. One thread a rank, whatever their number: the same sums. On the CPU: a GPU cannot be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "PYTHONWARNINGS": "ignore"}

import chaos_compare as compare
from chaos_moments import Preparation, Training
from chaos_starts import Command, Forked, Start, preload, send

from pipeline.config import load_recipe
from pipeline.manifest import MANIFEST
from pipeline.recipe import Recipe
from pipeline.stages import Stage, stages

RECIPE = Path(__file__).with_name("chaos.yaml")
# Where the world changes, rounding is all that may differ, and it must not grow. Muon's does: it orthogonalises in
# bf16, so that two unbroken runs, on 1 and on 3 ranks, differ by 3e-3 after 160 steps; with AdamW in fp32 by 9e-7.
SMOOTH = ("pretrain.precision=fp32", "pretrain.optimizer.name=adamw", "finetune.summarize.precision=fp32")
ZERO = ("zero1", "zero2", "zero3")
PATIENCE = 300.0  # seconds for a start that nobody kills
EXAMPLES = """
examples:
  tools/chaos --kills 200                                   pretraining on 2 ranks
  tools/chaos --kills 40 --elastic                          another number of ranks and ZeRO stage at each start
  tools/chaos --kills 60 --stages shard,tokenize,finetune   the others
  tools/chaos --kills 20 --seed 7 --workdir /tmp/chaos      the same moments to within milliseconds; keeps the folder

A kill hits one rank, the command or all at once, at a moment that is drawn: in start-up, between saves, or when a file
of a save appears. Just before it every process is frozen, so that the table tells exactly what was hit. Each start
continues what the one before left; a run that comes to its end is compared, and the next one begins.
Exit status: 0 all alike; 1 something differs, and the folder stays.
"""


class Difference(Exception):
    """A run that was killed came out otherwise."""


@dataclass
class Kill:
    stage: str
    phase: str
    whom: str
    start: str


class Chaos:
    def __init__(self, options: argparse.Namespace, workdir: Path) -> None:
        self.options, self.workdir = options, workdir
        self.random = random.Random(options.seed)
        self.words: list[str] = options.settings
        self.reference = workdir / "reference"
        self.recipe: Recipe = load_recipe(str(RECIPE), [*self.words, f"workdir={self.reference}"])
        self.stages = stages(self.recipe)
        self.seconds: dict[str, float] = {}  # of each stage, unbroken
        self.kills: list[Kill] = []
        self.starts = self.rounds = self.spare = 0
        self.largest = 0.0  # relative difference of a loss
        self.began = time.monotonic()

    def run(self) -> None:
        names = self._names(self.options.stages)
        self._make_reference(names)
        if any(self.stages[name].trains for name in names) and self.options.cold != 1:
            preload()
        self.began = time.monotonic()
        for index, name in enumerate(names):
            share = self.options.kills * (index + 1) // len(names)
            while len(self.kills) < share:
                self._round(self.stages[name], share)

    def _names(self, wanted: str) -> list[str]:
        """The stages to kill, in the order of work. `finetune` means every task."""
        known = [name for name in self.stages if name.partition(".")[0] not in ("evaluate", "export")]
        chosen = [part.strip() for part in wanted.split(",")]
        if wrong := [part for part in chosen if part not in ("all", *known, *(n.partition(".")[0] for n in known))]:
            print(f"chaos: no stage {wrong[0]!r}; there are {', '.join(known)}, all", file=sys.stderr)
            raise SystemExit(2)
        return [name for name in known if "all" in chosen or name in chosen or name.partition(".")[0] in chosen]

    # --- one run ---------------------------------------------------------------------------------------------------

    def _make_reference(self, names: list[str]) -> None:
        """Run everything up to the last of `names`, with no kill."""
        last = max(list(self.stages).index(name) for name in names)
        for name in list(self.stages)[: last + 1]:
            began = time.monotonic()
            start = Command(self._arguments(self.stages[name], self.reference, self.options.ranks), self._log())
            if not start.wait(PATIENCE) or not (self._folder(name, self.reference) / MANIFEST).exists():
                start.end()
                raise Difference(f"the unbroken {name} did not end well\n{self._tail()}")
            self.seconds[name] = time.monotonic() - began
            print(f"unbroken {name}: {self.seconds[name]:.1f} s", flush=True)

    def _round(self, stage: Stage, share: int) -> None:
        """One run of a stage: killed until it comes to its end, or until `share` kills were made in all."""
        self.rounds += 1
        workdir = self.workdir / f"round-{self.rounds}"
        later = list(self.stages)[list(self.stages).index(stage.name) :]
        skipped = {str(self._folder(name, self.reference)) for name in later} | {str(self.reference / "logs")}
        shutil.copytree(
            self.reference,
            workdir,
            ignore=lambda folder, found: [name for name in found if os.path.join(folder, name) in skipped],
        )
        folder = self._folder(stage.name, workdir)
        moments: Training | Preparation
        if stage.trains:
            inside = folder / "checkpoints" if stage.name.startswith("finetune") else folder
            final = folder / ("model" if stage.name.startswith("finetune") else "final")
            moments = Training(inside, final, self.random)
        else:
            moments = Preparation(folder, self.seconds[stage.name], self.random)
        while True:
            moments.begin()
            start = self._start(stage, workdir)
            if len(self.kills) < share and self._kill(start, moments, stage, workdir):
                continue
            if not start.wait(PATIENCE):
                start.end()
                raise Difference(f"{workdir}: a start of {stage.name} that nobody killed does not end\n{self._tail()}")
            if any(start.statuses.values()) or not (folder / MANIFEST).exists():
                raise Difference(
                    f"{workdir}: a start of {stage.name} that nobody killed left with {list(start.statuses.values())}\n"
                    f"{self._tail()}"
                )
            break
        self._compare(stage, workdir)
        shutil.rmtree(workdir)

    def _start(self, stage: Stage, workdir: Path) -> Start:
        self.starts += 1
        ranks = self.random.randint(1, 4) if self.options.elastic else self.options.ranks
        cold = not stage.trains or self.starts % self.options.cold == 0
        arguments = self._arguments(stage, workdir, ranks)
        if self.options.elastic and stage.trains:
            arguments.append(f"{stage.name}.deepspeed={self.random.choice(ZERO)}")
        if cold:
            return Command([*arguments, *([f"{stage.name}.self_test=yes"] if stage.trains else [])], self._log())
        return Forked(arguments, self._log(), ranks)

    def _kill(self, start: Start, moments: Training | Preparation, stage: Stage, workdir: Path) -> bool:
        """Wait for the moment that is drawn, and kill. False: the start came to its end before."""
        moment = moments.choose()
        while not moments.comes(moment):
            if not start.running():
                return False
            time.sleep(0.001)
        processes = start.processes()
        for _, pid in processes:
            send(pid, signal.SIGSTOP)
        phase, processes = moments.phase(), start.processes()  # some may have ended just before
        if not processes:
            return False
        whom = "all at once" if self.random.random() < 0.5 else self.random.choice(processes)[0]
        victims = [pid for name, pid in processes if whom in (name, "all at once")]
        for pid in victims:
            send(pid, signal.SIGKILL)
        for _, pid in processes:
            send(pid, signal.SIGCONT)
        # The others may notice and leave, or their launcher ends them first.
        start.wait(self.random.choice([0.0, self.random.uniform(0, 2.0)]) if isinstance(start, Forked) else 20.0)
        start.end()
        kind = "forked" if isinstance(start, Forked) else "command"
        self.kills.append(Kill(stage.name, phase, whom, kind))
        self._tell(self.kills[-1], len(start.pids), moments)
        return True

    def _compare(self, stage: Stage, workdir: Path) -> None:
        reference, killed = self._folder(stage.name, self.reference), self._folder(stage.name, workdir)
        found = [] if self.options.elastic and stage.trains else compare.outputs(reference, killed)
        if stage.trains:
            inside = "checkpoints" if stage.name.startswith("finetune") else ""
            more, largest = compare.trainings(reference / inside, killed / inside, not self.options.elastic)
            found, self.largest = found + more, max(self.largest, largest)
        if found:
            raise Difference(f"{workdir}: {stage.name} differs from {self.reference}:\n  " + "\n  ".join(found))
        print(f"{stage.name}: a run is at its end after {len(self.kills)} kills, alike", flush=True)

    # --- names and words -------------------------------------------------------------------------------------------

    def _arguments(self, stage: Stage, workdir: Path, ranks: int) -> list[str]:
        command, _, task = stage.name.partition(".")
        return [
            command,
            str(RECIPE),
            *(["--task", task] if task and stage.trains else []),
            f"workdir={workdir}",
            *self.words,
            *([f"{stage.name}.ranks={ranks}"] if stage.trains else []),
        ]

    def _folder(self, name: str, workdir: Path) -> Path:
        return workdir / self.stages[name].folder

    def _log(self) -> Path:
        return self.workdir / "said.txt"

    def _tail(self) -> str:
        return self._log().read_text(encoding="utf-8", errors="replace")[-3000:]

    def _tell(self, kill: Kill, ranks: int, moments: Training | Preparation) -> None:
        done, wanted = len(self.kills), self.options.kills
        rate = done / (time.monotonic() - self.began) * 60
        print(
            f"{done:4}/{wanted}  {kill.stage:18} {kill.start:8} {kill.whom:12} {kill.phase:32} "
            f"{rate:5.1f} kills/min, {(wanted - done) / rate:.0f} min left",
            flush=True,
        )
        with open(self.workdir / "kills.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(kill.__dict__) + "\n")

    def table(self) -> str:
        """How many kills fell where."""
        lines = [f"{'stage':18} {'what was going on':34} {'all':>5} {'one':>5} {'kills':>6}"]
        counted = Counter((kill.stage, kill.phase) for kill in self.kills)
        for (stage, phase), count in sorted(counted.items()):
            at_once = sum((kill.stage, kill.phase, kill.whom) == (stage, phase, "all at once") for kill in self.kills)
            lines.append(f"{stage:18} {phase:34} {at_once:5} {count - at_once:5} {count:6}")
        return "\n".join(lines)


def read_options(typed: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tools/chaos",
        description="Kill a small run again and again; it must come out as if nothing had happened.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="in all, over the stages (default 20)")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes that train (default 2)")
    parser.add_argument("--stages", default="pretrain", metavar="A,B", help="default pretrain; `all`: every one")
    parser.add_argument(
        "--elastic", action="store_true", help="1 to 4 ranks and ZeRO 1 to 3, drawn for each start; AdamW in fp32"
    )
    parser.add_argument(
        "--cold",
        type=int,
        default=8,
        metavar="N",
        help="each Nth start of a training is the command itself; the others fork ranks from a process that has done "
        "the imports (default 8; 1: none)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments (default 1)")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="new folder, which stays; default a temporary one")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of tools/chaos.yaml")
    return parser.parse_args(typed)


def main() -> int:
    options = read_options()
    if options.elastic:
        options.settings = [*SMOOTH, *options.settings]
    workdir = options.workdir or Path(tempfile.mkdtemp(prefix="headwater-chaos-"))
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
        print(f"chaos: {workdir} is not empty; name a new folder", file=sys.stderr)
        return 2
    chaos = Chaos(options, workdir)
    try:
        chaos.run()
    except Difference as difference:
        print(f"{chaos.table()}\nDIFFERENT: {difference}\n{workdir} stays", file=sys.stderr)
        return 1
    print(chaos.table())
    took = time.monotonic() - chaos.began
    alike = (
        f"the largest relative difference of a step's loss is {chaos.largest:.1e}"
        if options.elastic
        else "bytes and losses are the same to the last bit"
    )
    print(
        f"{len(chaos.kills)} kills, {chaos.starts} starts, {chaos.rounds} runs to their end in {took / 60:.1f} min "
        f"({len(chaos.kills) / took * 60:.1f} kills/min): each step once, {alike}"
    )
    if not options.workdir:
        shutil.rmtree(workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
