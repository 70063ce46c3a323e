"""What a training process and its machine are busy with, sampled at each logged step.

GPU figures come from NVML, the driver's own library. They are for charts only: where it gives none (no driver, a MIG
slice, no permission) they are left out, and training goes on.
"""

import contextlib
from typing import Any

import psutil
import torch

from persona.models import hardware


class ResourceMonitor:
    """Samples of this process, this machine and the GPU that the process trains on."""

    def __init__(self) -> None:
        self.process, self.cores = psutil.Process(), psutil.cpu_count() or 1
        self.nvml: Any = None
        self.gpu: Any = None  # its handle
        if torch.cuda.is_available():
            self._open_nvml()
        self._cpu_percents()  # the first ones are 0: each call counts from the last

    def sample(self) -> dict[str, float]:
        """The figures of a step's event (docs/formats.md): memory in bytes, loads in percent, temperature in °C.

        cpu_load and machine_load: of all cores, since the last sample; gpu_load: of the driver's last sampling period.
        """
        process, machine = self._cpu_percents()
        return {
            "memory": self._current_memory(), "peak_memory": peak_memory(),
            "cpu_load": round(process, 1), "machine_load": machine, **self._sample_gpu(),
        }  # fmt: skip

    def _open_nvml(self) -> None:
        """torch's current GPU in NVML, which counts GPUs otherwise under CUDA_VISIBLE_DEVICES: so by its UUID."""
        with contextlib.suppress(Exception):  # whatever is wrong with driver or package is no reason not to train
            import pynvml

            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            self.nvml, self.gpu = pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def _cpu_percents(self) -> tuple[float, float]:
        return self.process.cpu_percent() / self.cores, psutil.cpu_percent()

    def _current_memory(self) -> int:
        """Bytes that this process holds: of GPU memory where there is a GPU, else resident."""
        return torch.cuda.memory_allocated() if torch.cuda.is_available() else self.process.memory_info().rss

    def _sample_gpu(self) -> dict[str, float]:
        """gpu_memory is that of all programs; a figure that the driver refuses is left out."""
        figures: dict[str, float] = {}
        if self.gpu is None:
            return figures
        nvml, gpu = self.nvml, self.gpu
        with contextlib.suppress(nvml.NVMLError):
            figures["gpu_memory"] = nvml.nvmlDeviceGetMemoryInfo(gpu).used
        with contextlib.suppress(nvml.NVMLError):
            figures["gpu_load"] = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        with contextlib.suppress(nvml.NVMLError):
            figures["gpu_temperature"] = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
        return figures


def peak_memory() -> int:
    """The most bytes that this process has held: of GPU memory where there is a GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return hardware.peak_resident_memory()
