"""Time before the start of a run, from the machine's rates."""

from dataclasses import replace

import pytest

from persona.models.hardware import Machine
from persona.train.duration import GPU_LAYER_SECONDS, STARTUP_SECONDS, TrainingWork, estimate_seconds, estimate_speed
from persona.train.plan import plan_training
from persona.train.progress import RunProgress
from tests.test_hardware import BASES, MACHINES, ROWS

WORK = TrainingWork(tokens=55_000, learned=26_000, evaluations=12, held_out=2_000, samples=3)


def test_time_grows_with_work_and_falls_with_speed():
    machine, shape = MACHINES["AMX"], BASES["270M"]
    plan = plan_training(machine, shape, ROWS)

    def seconds(machine=machine, **work) -> float | None:
        return estimate_seconds(machine, shape, plan, replace(WORK, **work))

    assert seconds() == pytest.approx(270, rel=0.25), "4 min 30 s from the start to the adapter on such a machine"
    assert seconds(tokens=110_000, learned=52_000) > 1.5 * seconds()
    assert seconds(samples=0) < seconds(evaluations=24) - 20
    assert seconds(replace(machine, rates=(("float32", 1.3e12), ("bfloat16", 1.5e13)))) < seconds() / 2
    busy = replace(machine, rates=(("float32", 1.3e11 / 4), ("bfloat16", 1.5e12 / 4)))
    assert seconds(busy) > 3 * seconds(), "other programs compute beside it"
    assert seconds(replace(machine, rates=())) is None
    assert seconds(repeated=20_000) < seconds() - 40, "a shared beginning is computed once"
    speed = estimate_speed(machine, shape, plan, WORK)
    assert seconds(evaluations=0) == pytest.approx(STARTUP_SECONDS + WORK.tokens / speed, rel=0.02)


def test_short_rows_on_a_gpu_take_what_launching_their_kernels_takes():
    machine, shape = (
        Machine("cuda", "H200", 150 * 10**9, 16, (("float32", 4.8e13), ("bfloat16", 6.4e14))),
        BASES["270M"],
    )
    plan = plan_training(machine, shape, ROWS)
    work = replace(WORK, steps=100)
    launched = 100 * plan.accumulation * shape.layers * GPU_LAYER_SECONDS
    assert estimate_speed(machine, shape, plan, work) == pytest.approx(work.tokens / launched)
    many = replace(work, tokens=work.tokens * 1000, learned=work.learned * 1000)
    assert estimate_speed(machine, shape, plan, many) > 50 * estimate_speed(machine, shape, plan, work)


def test_a_finished_run_knows_better_than_the_matmuls():
    machine, shape = MACHINES["AMX"], BASES["270M"]
    plan = plan_training(machine, shape, ROWS)
    last = RunProgress(result={"tokens_per_s": 100}, evaluation_seconds=7.0)
    assert estimate_speed(machine, shape, plan, WORK, last) == 100
    assert estimate_seconds(machine, shape, plan, WORK, last) == STARTUP_SECONDS + 550 + 12 * 7
