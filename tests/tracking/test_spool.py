"""The journals: whole lines only, each step once, nothing forgotten."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.spool import ROUNDING, Spool, spools


def metrics(spool: Spool) -> list[tuple[int | None, dict[str, float]]]:
    return [(line["step"], line["metrics"]) for line, _ in spool.metrics.read()]


def write(spool: Spool, step: int | None, **values: float) -> None:
    spool.metrics.append({"step": step, "time": 1.0, "metrics": values})


def test_half_a_line_at_the_end_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "pretrain")
    write(spool, 1, loss=3.0)
    with open(spool.metrics.path, "ab") as handle:
        handle.write(b'{"step": 2, "metr')
    spool = Spool(tmp_path, "pretrain")
    write(spool, 2, loss=2.0)
    assert metrics(spool) == [(1, {"loss": 3.0}), (2, {"loss": 2.0})]


def test_a_damaged_line_is_told_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, "pretrain")
    write(spool, 1, loss=3.0)
    with open(spool.metrics.path, "ab") as handle:
        handle.write(b"\0\0\0\n[1]\n")
    write(spool, 2, loss=2.0)
    with caplog.at_level("WARNING", "pipeline"):
        lines = [line for line, _ in spool.metrics.read()]
    assert [line.get("step") for line in lines] == [1, None, None, 2]
    assert "pretrain.metrics.jsonl: damaged line" in caplog.text


def test_rewind_leaves_each_step_once_and_the_load_of_the_machine(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "pretrain")
    for step in (10, 20, 30):
        write(spool, step, loss=step / 10)
        write(spool, step, **{"system/cpu": 50.0})
    write(spool, None, done=1.0)
    spool.rewind(10)
    write(spool, 20, loss=9.0)
    assert [step for step, values in metrics(spool) if "loss" in values] == [10, 20]
    assert [step for step, values in metrics(spool) if "system/cpu" in values] == [10, 20, 30]
    assert (None, {"done": 1.0}) in metrics(spool)


def losses_of(spool: Spool) -> list[tuple[float, float]]:
    lines = [line for line, _ in spool.metrics.read()]
    return [(line["time"], line["metrics"]["loss"]) for line in lines if "loss" in line["metrics"]]


def test_a_number_made_again_by_other_ranks_is_the_first_but_for_rounding(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "pretrain")
    spool.numbers({"loss": 3.0, "grad_norm": 1.0, "spike": float("nan")}, 10)
    (first,) = (line["time"] for line, _ in spool.metrics.read())
    spool.rewind(5, ROUNDING)
    spool.numbers({"loss": 3.0003, "grad_norm": 1.5, "spike": float("nan")}, 10)
    again = {name: (line["time"], value) for line, _ in spool.metrics.read() for name, value in line["metrics"].items()}
    assert again["loss"] == (first, 3.0)
    assert again["grad_norm"][1] == 1.5
    assert again["spike"][0] == first
    spool.numbers({"loss": 3.0003}, 11)
    assert losses_of(spool)[-1][1] == 3.0003
    spool = Spool(tmp_path, "pretrain")  # killed, and continued by as many ranks as last
    spool.rewind(5)
    spool.numbers({"loss": 3.0003}, 10)
    assert losses_of(spool) == [(first, 3.0)]


def test_a_number_of_other_data_is_never_the_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "pretrain")
    spool.numbers({"loss": 3.0}, 10)
    spool.rewind(5, ROUNDING)
    spool.numbers({"loss": 3.0}, 10)
    spool.rewind(5, 0.0)
    spool.numbers({"loss": 3.0003}, 10)
    assert [value for _, value in losses_of(spool)] == [3.0003]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("log"), st.integers(1, 30)),
            st.tuples(st.just("rewind"), st.integers(0, 30)),
            st.tuples(st.just("send"), st.integers(1, 200)),
            st.tuples(st.just("lost answer"), st.integers(1, 200)),
            st.tuples(st.just("open"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_whatever_happens_all_that_is_kept_arrives(actions: list[tuple[str, int]]) -> None:
    """Logging, rewinding, sending, answers that get lost and restarts, in any order: at the end all was delivered."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "pretrain")
        spool.send_to("sqlite", "run")
        arrived: list[str] = []

        def send(most: int, answer: bool) -> None:
            batch = list(spool.metrics.read(spool.last_sent(spool.metrics), most))
            arrived.extend(json.dumps(line, sort_keys=True) for line, _ in batch)
            if batch and answer:
                spool.mark_sent(spool.metrics, batch[-1][1])

        for number, (action, value) in enumerate(actions):
            if action == "log":
                write(spool, value, loss=float(number))
            elif action == "rewind":
                spool.rewind(value)
            elif action == "open":
                spool = Spool(Path(folder), "pretrain")
            else:
                send(value, action == "send")
        while spool.unsent():
            send(1000, True)
        kept = [json.dumps(line, sort_keys=True) for line, _ in spool.metrics.read()]
        assert set(kept) <= set(arrived)
        assert spool.unsent_points() == 0


def test_sending_while_rewinding_sends_what_is_new(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "pretrain")
    for step in (1, 2, 3):
        write(spool, step, loss=float(step))
    batch = list(spool.metrics.read())  # on its way to the server …
    spool.rewind(1)  # … when training goes back
    write(spool, 2, loss=20.0)
    write(spool, 3, loss=30.0)
    write(spool, 4, loss=40.0)
    spool.mark_sent(spool.metrics, batch[-1][1])
    sent_again = [line["metrics"]["loss"] for line, _ in spool.metrics.read(spool.last_sent(spool.metrics))]
    assert {20.0, 30.0, 40.0} <= set(sent_again)


def test_a_stage_with_other_settings_is_another_run_and_the_old_one_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "finetune.a")
    first = spool.begin("one key")
    write(spool, 1, loss=1.0)
    assert Spool(tmp_path, "finetune.a").begin("one key") == first  # continued
    spool = Spool(tmp_path, "finetune.a")
    assert spool.begin("another key")["id"] != first["id"]
    assert metrics(spool) == []
    found = spools(tmp_path)
    assert [each.name for each in found] == ["finetune.a-1", "finetune.a"]
    assert metrics(found[0]) == [(1, {"loss": 1.0})]


def test_a_finished_stage_that_runs_again_is_another_run(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "shard")
    first = spool.begin("key")
    spool.event("status", status="FINISHED")
    assert Spool(tmp_path, "shard").begin("key")["id"] != first["id"]
    root = Spool(tmp_path, "pipeline")
    root_id = root.begin("pipeline", new_when_finished=False)["id"]
    root.event("status", status="FINISHED")
    assert root.begin("pipeline", new_when_finished=False)["id"] == root_id


def _try_to_send(folder: str, answer: multiprocessing.Queue[bool]) -> None:
    with Spool(Path(folder), "shard").only_sender() as mine:
        answer.put(mine)


def test_two_processes_never_send_the_same_spool(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[bool] = context.Queue()

    def ask() -> bool:
        other = context.Process(target=_try_to_send, args=(str(tmp_path), answers))
        other.start()
        mine = answers.get(timeout=300)
        other.join()
        return mine

    with Spool(tmp_path, "shard").only_sender() as mine:
        assert mine
        assert not ask()
    assert ask()


def test_another_server_gets_everything(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "shard")
    write(spool, 1, loss=1.0)
    spool.send_to("one", "run")
    batch = list(spool.metrics.read())
    spool.mark_sent(spool.metrics, batch[-1][1])
    spool.send_to("one", "run")
    assert not spool.unsent()
    spool.send_to("two", "run")
    assert spool.unsent_points() == 1


def test_a_damaged_note_of_what_was_sent_means_sending_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, "shard")
    write(spool, 1, loss=1.0)
    (tmp_path / "shard.sent.json").write_text("{", encoding="utf-8")
    with caplog.at_level("WARNING", "pipeline"):
        assert spool.unsent_points() == 1
    assert "sent again" in caplog.text
