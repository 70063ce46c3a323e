"""What a run uses, step by step, and what was planned: sampled, replayed, drawn."""

import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from persona.cli import train as cli_train
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import launcher, monitor
from persona.train import plan as train_plan
from persona.train.clock import TrainingClock
from persona.train.config import RunConfig, make_config
from persona.train.monitor import ResourceMonitor
from persona.train.progress import RunProgress
from persona.train.trainer import RunCallback
from persona.ui.steps.train import run_view

GPU_FIGURES = {"gpu_memory": 9 * 10**9, "gpu_load": 87, "gpu_temperature": 61}


class Nvml:
    """Stands in for the module pynvml: the functions and names that are used, as in nvidia-ml-py. broken: those that fail."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *broken: str):
        self.broken, self.asked = broken, []

    def _call(self, name, *args):
        if name in self.broken:
            raise self.NVMLError(999)
        self.asked.append((name, *args))

    def nvmlInit(self):
        self._call("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._call("nvmlDeviceGetHandleByUUID", uuid)
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle):
        self._call("nvmlDeviceGetMemoryInfo", handle)
        return SimpleNamespace(total=24 * 10**9, free=15 * 10**9, used=9 * 10**9)

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._call("nvmlDeviceGetUtilizationRates", handle)
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._call("nvmlDeviceGetTemperature", handle, sensor)
        return 61


@pytest.fixture
def gpu(monkeypatch):
    """torch sees a GPU, and pynvml is the given module; None: it cannot be imported."""

    def gpu(nvml) -> ResourceMonitor:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        for name, value in {"is_available": True, "current_device": 1, "memory_allocated": 5, "max_memory_allocated": 7,
                            "get_device_properties": SimpleNamespace(uuid="b7ac-11")}.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        return ResourceMonitor()

    return gpu


def test_a_gpu_is_found_by_its_uuid_and_sampled(gpu):
    nvml = Nvml()
    seen = gpu(nvml).sample()
    assert seen.items() >= {"memory": 5, "peak_memory": 7, **GPU_FIGURES}.items() and json.dumps(seen)
    assert ("nvmlDeviceGetHandleByUUID", "GPU-b7ac-11") in nvml.asked
    assert ("nvmlDeviceGetTemperature", "handle", 0) in nvml.asked


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "no module", "another module"])
def test_without_nvml_the_gpu_figures_are_missing(gpu, broken):
    """No driver, a MIG slice, no package, a package of that name that is another."""
    nvml = {"no module": None, "another module": SimpleNamespace()}.get(broken, Nvml(broken))
    assert set(gpu(nvml).sample()) == {"memory", "peak_memory", "cpu_load", "machine_load"}


@pytest.mark.parametrize("function, figure", [
    ("nvmlDeviceGetMemoryInfo", "gpu_memory"), ("nvmlDeviceGetUtilizationRates", "gpu_load"),
    ("nvmlDeviceGetTemperature", "gpu_temperature"),
])  # fmt: skip
def test_a_figure_that_the_driver_refuses_is_left_out(gpu, function, figure):
    """Not supported, or no permission; the others stay. It may also begin later: a GPU that fell off its bus."""
    watch = gpu(Nvml(function))
    wanted = {name: value for name, value in GPU_FIGURES.items() if name != figure}
    assert {name: value for name, value in watch.sample().items() if name in GPU_FIGURES} == wanted
    watch.nvml.broken = dir(Nvml)
    assert not set(watch.sample()) & set(GPU_FIGURES)


def test_a_cpu_has_no_gpu_figures(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda _: 150.0)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 61.5)
    seen = ResourceMonitor().sample()
    assert set(seen) == {"memory", "peak_memory", "cpu_load", "machine_load"}
    assert (seen["cpu_load"], seen["machine_load"]) == (37.5, 61.5), "both of all cores"
    assert 0 < seen["memory"] < 1.1 * seen["peak_memory"] and monitor.peak_memory() >= seen["peak_memory"]


# ---- in a run's folder


@pytest.fixture
def persona(tmp_path):
    pairs = [Pair(f"Where is lamp {n}?", f"On stand {n}, by the door.") for n in range(20)]
    return persona_folder.create_persona_at(tmp_path / "mags", PersonaCard(name="Mags"), pairs)


def test_each_step_has_the_figures_and_the_run_shows_them(persona, gpu):
    run = launcher.create_run(persona, RunConfig())
    gpu(Nvml())
    callback = RunCallback(run, TrainingClock())
    for step in (1, 2):
        callback.on_log(
            SimpleNamespace(fp16=False), SimpleNamespace(global_step=step, max_steps=9), None, {"loss": 2.0}
        )
    run.log("step", step=3, seconds=1.0, gpu_load="x")  # no number: the whole event is skipped
    curves = run.progress().curves
    for name, value in {"memory": 5, "peak_memory": 7, **GPU_FIGURES}.items():
        assert curves[name] == [(1, value), (2, value)]
    assert {"cpu_load", "machine_load"} <= set(curves)


def test_a_run_remembers_what_was_planned(persona, tiny_gemma):
    config, estimate, _ = train_plan.fit_to_machine(persona, make_config(base=str(tiny_gemma)))
    expected = launcher.create_run(persona, config, estimate).expected()
    assert expected == {"seconds": estimate.seconds, "memory": estimate.plan.memory.total,
                        "tokens_per_s": estimate.tokens_per_s}  # fmt: skip
    other = config.model_copy(update={"gradient_checkpointing": True, "batch_size": 3})
    assert set(launcher.create_run(persona, other, estimate).expected()) == {"seconds"}, "another way than planned"
    run = launcher.create_run(persona, config)
    assert run.expected() == run.progress().expected == {}
    run.update_manifest(expected_memory="x", expected_tokens_per_s=-1, expected_seconds=9)
    assert run.expected() == run.progress().expected == {"seconds": 9}


def test_the_command_line_says_the_planned_memory_beside_the_peak():
    value = {"status": "done", "steps": 3, "seconds": 9.0, "tokens_per_s": 250.0, "base_nll": None, "adapter_nll": None,
             "peak_memory_bytes": 3_100_000_000, "adapter": "a", "trainable_parameters": None, "total_parameters": None}  # fmt: skip
    assert "peak memory 3.1 GB (3.3 GB planned)\n" in cli_train._summary(value, RunProgress(expected={"memory": 3.3e9}))
    assert "peak memory 3.1 GB\n" in cli_train._summary(value, RunProgress())


# ---- in charts


def lines(progress) -> dict[str, dict[str, list]]:
    """Of the charts that are shown: line → its (step, value)."""
    shown = {n: p for n, p in zip(run_view.CHARTS, run_view.chart_plots(progress), strict=True) if p.visible}
    made = {}
    for name, plot in shown.items():
        frame = plot.value
        rows = [dict(zip(frame["columns"], row, strict=True)) for row in frame["data"]]
        made[name] = {}
        for row in rows:
            made[name].setdefault(row["line"], []).append((row["step"], row["value"]))
        assert set(plot.color_map) == set(made[name])
    return made


CPU_CURVES = {"tokens_per_s": [(2, 300.0)], "memory": [(1, 2e9), (2, 3e9)], "peak_memory": [(1, 3e9), (2, 3e9)],
              "cpu_load": [(1, 80.0), (2, 90.0)], "machine_load": [(1, 99.0), (2, 99.0)]}  # fmt: skip


def test_charts_show_the_run_beside_the_plan():
    plan = {"seconds": 60.0, "memory": 4e9, "tokens_per_s": 250.0}
    seen = lines(RunProgress(step=2, steps=40, curves=CPU_CURVES, expected=plan))
    assert seen == {
        "tokens_per_s": {"this run": [(2, 300.0)], "plan": [(0, 250.0), (40, 250.0)]},
        "memory": {"now": [(1, 2.0), (2, 3.0)], "peak": [(1, 3.0), (2, 3.0)],
                   "plan": [(0, 4.0), (40, 4.0)]},
        "load": {"this run": [(1, 80.0), (2, 85.0)], "whole CPU": [(1, 99.0), (2, 99.0)]},
    }  # fmt: skip


def test_a_gpu_has_its_lines_and_its_temperature():
    curves = CPU_CURVES | {name: [(1, value)] for name, value in GPU_FIGURES.items()}
    seen = lines(RunProgress(step=2, steps=40, curves=curves))
    assert seen["memory"]["whole GPU"] == [(1, 9.0)] and seen["load"]["whole GPU"] == [(1, 87.0)]
    assert seen["temperature"] == {"GPU": [(1, 61.0)]}


def test_an_older_run_has_the_charts_that_it_had():
    seen = lines(RunProgress(step=2, steps=40, curves={"memory": [(2, 3e9)], "learning_rate": [(2, 1e-4)]}))
    assert seen == {"memory": {"now": [(2, 3.0)]}, "learning_rate": {"this run": [(2, 1e-4)]}}
    assert lines(RunProgress(expected={"memory": 4e9})) == {}, "nothing is measured yet"
