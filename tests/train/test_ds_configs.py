"""Every file of ds_configs trains on CPU ranks, or says in one line why it cannot."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, ClassVar

import forked
import pytest
from test_elastic import losses
from tiny_task import MODEL, VOCABULARY, cut_or_whole, each_training, run

from pipeline.cluster import device
from pipeline.cluster.device import Device
from pipeline.config import load_recipe
from pipeline.errors import RecipeError, Stopped
from pipeline.model.build import build_model
from pipeline.progress import start_logging
from pipeline.run import run_all
from pipeline.train import deepspeed_files
from pipeline.train.audit import events
from pipeline.train.deepspeed_files import ALLOWED, check_machine, read_config
from pipeline.train.engine import BUCKETS_OF_STAGE

FOLDER = Path(__file__).parents[2] / "ds_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TRAINED = [name for name in NAMES if name != "zero3_plusplus"]
RANKS, STEPS, CUT = 4, 3, 2  # ranks: for ZeRO++ two nodes of two
# ZeRO-3 keeps parameters of up to 100,000 elements whole on each rank: one of each layer (131,072) is larger.
WIDE = MODEL.model_copy(update={"dim": 64, "ffn_dim": 1024})
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16", "micro_batch": 1},  # accumulates
}
RESUMED = ("zero2_offload", "zero3_offload", "zero3_hpz")  # the others: test_elastic.py
OPTIMIZER = {"learning_rate": 2e-3}  # at five times that the loss jumps, and with it every difference of rounding
SMALL_BUCKETS = ("zero1", "zero2", "zero3")  # than the largest weight
GPU = Device("cuda", 0, "a GPU", 1, bf16=True)


def train_all(wanted: list[dict[str, Any]]) -> None:
    """Each training in turn, on the ranks of this process: to the end, or until `cut` steps are done."""
    start_logging()
    device.PEAK_SECONDS = 0.01  # nobody reads these runs' speed
    for training, ranks in each_training(wanted):
        task = cut_or_whole(training, ranks, STEPS)
        task.model = build_model(WIDE, VOCABULARY, 1)
        chosen = {"checkpoint_steps": 0, "validation_interval": STEPS, "optimizer": OPTIMIZER, **training["settings"]}
        with contextlib.suppress(Stopped):
            run(Path(training["folder"]), task, ranks, **chosen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file in fp32, and in bf16 with accumulation; some of them cut and continued, too."""
    folder = tmp_path_factory.mktemp("ds_configs")
    two_nodes = read_config("zero3_hpz")
    two_nodes["zero_optimization"]["zero_hpz_partition_size"] = 2
    (folder / "two_nodes.json").write_text(json.dumps(two_nodes))

    def training(name: str, precision: str, place: str, cut: int = 0) -> dict[str, Any]:
        file = str(folder / "two_nodes.json") if name == "zero3_hpz" else name
        chosen = {"deepspeed": file, **PRECISIONS[precision]}
        return {"folder": str(folder / place / f"{name}-{precision}"), "settings": chosen, "cut": cut}

    wanted = [training(name, precision, "whole") for name in TRAINED for precision in PRECISIONS]
    wanted += [training(name, "bf16", "again", cut) for cut in (CUT, 0) for name in RESUMED]
    for name in SMALL_BUCKETS:
        small = read_config(name)
        small["zero_optimization"] |= dict.fromkeys(BUCKETS_OF_STAGE[small["zero_optimization"]["stage"]], 50_000)
        (folder / f"{name}.json").write_text(json.dumps(small))
        chosen = {"deepspeed": str(folder / f"{name}.json"), **PRECISIONS["fp32"]}
        wanted.append({"folder": str(folder / "small" / name), "settings": chosen, "cut": 0})
    ended = forked.run(folder / "said", train_all, wanted, ranks=RANKS)
    assert ended.status == 0, ended.said[-4000:]
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_as_zero_1_does(trained: Path, name: str) -> None:
    for precision, rel in (("fp32", 1e-5), ("bf16", 2e-3)):
        found = losses(trained / "whole" / f"{name}-{precision}")
        assert len(found) == STEPS and found[-1] < found[0]
        assert found == pytest.approx(losses(trained / "whole" / f"zero1-{precision}"), rel=rel), precision


@pytest.mark.parametrize("name", SMALL_BUCKETS)
def test_weights_may_be_larger_than_a_bucket(trained: Path, name: str) -> None:
    assert losses(trained / "small" / name) == pytest.approx(losses(trained / "whole" / f"{name}-fp32"), rel=1e-6)


@pytest.mark.parametrize("name", RESUMED)
def test_it_goes_on_bit_equal(trained: Path, name: str) -> None:
    folder = trained / "again" / f"{name}-bf16"
    (resumed,) = [event for event in events(folder) if event["kind"] == "resumed"]
    assert resumed["step"] == CUT
    assert losses(folder) == losses(trained / "whole" / f"{name}-bf16")


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_knows_every_key(name: str) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    values = read_config(name)
    assert set(values) == {"zero_optimization"}
    known = {field.alias or key for key, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(values["zero_optimization"]) <= known
    DeepSpeedZeroConfig(**values["zero_optimization"])  # which refuses what it does not know, further down too


def test_deepspeed_reads_every_section_that_is_allowed() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    class Watched(dict[str, Any]):
        asked: ClassVar[set[str]] = set()

        def get(self, key: str, default: Any = None) -> Any:
            self.asked.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            self.asked.add(str(key))
            return super().__contains__(key)

    DeepSpeedConfig(Watched(train_batch_size=1))
    assert set(ALLOWED) <= Watched.asked


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation' has no place here; what may .* zero_optimization"),
        ({"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1}}, "live_parameters has no effect without"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param has no effect"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "device: nvme needs .* use cpu"),
    ],
)
def test_what_would_be_passed_over_or_cannot_be_had_is_refused(tmp_path: Path, values: Any, words: str) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=rf"mine\.json: .*{words}"):
        read_config(str(tmp_path / "mine.json"))


def test_it_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"optimizer": {"type": "Adam"}}))
    recipe = load_recipe("demo", [f"workdir={tmp_path / 'run'}", f"pretrain.deepspeed={tmp_path / 'mine.json'}"])
    with pytest.raises(RecipeError, match=r"mine\.json: 'optimizer' is set by the recipe"):
        run_all(recipe)
    assert not (tmp_path / "run" / "text").exists()


@pytest.mark.parametrize(
    ("zero", "words"),
    [
        (
            {"stage": 2, "reduce_bucketsize": 5},
            r"refuses it: zero_optimization\.reduce_bucketsize: Extra inputs are not",
        ),
        ({"stage": 3, "mics_shard_size": 2}, r"refuses it: MiCS .* has been removed"),
    ],
)
def test_what_deepspeed_refuses_is_one_line(tmp_path: Path, zero: Any, words: str) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"zero_optimization": zero}))
    with pytest.raises(RecipeError, match=rf"mine\.json: DeepSpeed {words}") as refused:
        run(tmp_path / "run", deepspeed=str(tmp_path / "mine.json"))
    assert "\n" not in str(refused.value)


def test_quantisation_asks_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"zero3_plusplus\.json: zero_quantized_weights needs NVIDIA GPUs and the CUDA toolkit .* use zero3_hpz"
    with pytest.raises(RecipeError, match=words):
        run(tmp_path, deepspeed="zero3_plusplus")
    monkeypatch.setattr(deepspeed_files, "_has_cuda_toolkit", lambda: False)
    with pytest.raises(RecipeError, match=words):
        check_machine("zero3_plusplus", GPU, 16)
    monkeypatch.setattr(deepspeed_files, "_has_cuda_toolkit", lambda: True)
    check_machine("zero3_plusplus", GPU, 16)


def test_a_node_of_zero_plus_plus_divides_the_ranks() -> None:
    for ranks in (1, 2, 8, 16):
        check_machine("zero3_hpz", GPU, ranks)
    with pytest.raises(RecipeError, match=r"zero3_hpz\.json: zero_hpz_partition_size = 8 does not divide 12 ranks"):
        check_machine("zero3_hpz", GPU, 12)
