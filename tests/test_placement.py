"""A base whose layers are not all on one device computes what it computes on one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hardware import BASES, MACHINES, ROWS
from tiny_models import make_adapter

from persona.compare import session
from persona.errors import AdapterError, InputError
from persona.models import attach, hardware, memory, placement
from persona.models.base import Base, load_base_model, load_tokenizer
from persona.models.generate import generate_batch
from persona.models.hardware import DevicePlan, Machine
from persona.models.loss import mean_nll
from persona.models.sampling import Sampling
from persona.template.render import IGNORE_INDEX, TrainingExample
from persona.train import run as train_run
from persona.train import validate
from persona.train.collator import Collator
from persona.train.config import RunConfig, make_config
from persona.train.plan import apply_plan, plan_training
from persona.train.prepare import prepare_run

pytest_plugins = ["training"]
GB = 10**9
PROMPTS = [[5, 33, 34, 8, 12, 10], [5, 22, 23]]
IDS = torch.tensor([[5, 33, 34, 8, 12, 10, 4]])
LABELS = torch.tensor([[IGNORE_INDEX] * 3 + [8, 12, 10, 4]])


def divided(folder: Path, disk: Path, *waiting: str) -> Any:
    """The model with these of its modules on the disk, as others wait in the machine's memory beside a GPU."""
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    where = {part: "disk" if part in waiting else "cpu" for part in parts}
    return load_base_model(
        Base("someone/tiny", folder), "float32", placed={"device_map": where, "offload_folder": str(disk)}
    )


@pytest.fixture(params=["layers", "head"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, Path]:
    """The same base undivided and divided: Gemma, whose output layer is its embedding; Llama with its head away."""
    folder = request.getfixturevalue("tiny_gemma" if request.param == "layers" else "tiny_llama")
    waiting = ["model.layers.1", "model.norm"] if request.param == "layers" else ["model.layers.0", "lm_head"]
    whole, parts = (
        load_base_model(Base("someone/tiny", folder), "float32"),
        divided(folder, tmp_path / "disk", *waiting),
    )
    assert placement.is_divided(parts) and not placement.is_divided(whole)
    assert any(p.is_meta for p in parts.parameters()), "nothing waits"
    return whole, parts, folder


@pytest.mark.slow
def test_a_divided_base_says_the_same_with_an_adapter_beside_the_base(
    models: tuple[Any, Any, Path], tmp_path: Path
) -> None:
    *both, folder = models
    adapter, base = make_adapter(folder, tmp_path / "adapter")
    said = []
    for model in both:
        model, tokenizer = attach.attach_adapter(model, adapter, "one"), load_tokenizer(base)
        mixes = [(("one", 1.0),), ()]
        samplings = [Sampling(max_new_tokens=12, temperature=0), Sampling(max_new_tokens=6, seed=3)]
        *_, last = generate_batch(model, tokenizer, PROMPTS, samplings, -1, mixes)
        said.append([r.text for r in last])
    assert said[0] == said[1] and all(said[0])


@pytest.mark.slow
def test_a_divided_base_has_the_same_loss_with_and_without_an_adapter(
    models: tuple[Any, Any, Path], tmp_path: Path
) -> None:
    *both, folder = models
    example = TrainingExample(IDS[0].tolist(), LABELS[0].tolist(), "", [])
    adapter, _ = make_adapter(folder, tmp_path / "adapter")
    figures = []
    for model in both:
        alone = mean_nll(model, [example], Collator(0))
        figures.append([alone, mean_nll(attach.attach_adapter(model, adapter, "one"), [example], Collator(0))])
    assert figures[1] == pytest.approx(figures[0], rel=1e-5) and abs(figures[0][0] - figures[0][1]) > 1e-3


def test_a_dora_is_refused_where_weights_wait_elsewhere(models: tuple[Any, Any, Path], tmp_path: Path) -> None:
    whole, parts, folder = models
    adapter, _ = make_adapter(folder, tmp_path / "adapter", use_dora=True)
    attach.attach_adapter(whole, adapter, "one")
    with pytest.raises(AdapterError, match="is a DoRA"):
        attach.attach_adapter(parts, adapter, "one")


@pytest.mark.parametrize("weights, free, room, said", [
    (8, [24], None, ""), (8, [], None, ""), (22, [24, 24], {0: 21 * GB, 1: 21 * GB}, "spread over 2"),
    (30, [24], {0: 21 * GB, "cpu": 30 * GB}, "wait in the machine's memory"),
    (50, [24, 2], {0: 21 * GB, 1: 0, "cpu": 50 * GB}, "wait in the machine's memory"),
])  # fmt: skip
def test_where_the_weights_of_a_chat_go(weights: int, free: list[int], room: dict | None, said: str) -> None:
    placed = placement.place_for_chat(weights * GB, [n * GB for n in free])
    assert placed.kwargs == ({} if room is None else {"device_map": "auto", "max_memory": room})
    assert said in placed.reason and bool(said) == bool(placed.reason)


def test_a_chat_places_the_base_by_the_memory_of_the_gpus(tiny_gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Base("someone/tiny", tiny_gemma)
    monkeypatch.setattr(
        session, "_open", {}
    )  # one that an earlier test has opened would count as memory that comes free
    monkeypatch.setattr(hardware, "this_machine", lambda: Machine("cuda", "A GPU", 4 * GB, 2, gpus=2))
    needs = base.loaded_size("bfloat16")
    assert needs == sum(p.numel() * 2 for p in load_base_model(base, "bfloat16").parameters())
    free = placement.CHAT_BYTES + needs - 1
    monkeypatch.setattr(hardware, "free_gpu_memory", lambda _: [free] * 2)
    monkeypatch.setattr(memory, "estimate_chat_memory", lambda *_: free + 1)
    loaded: list[Any] = []
    monkeypatch.setattr(session.bases, "load_base_model", lambda *_, placed, **__: loaded.append(placed))
    plan = session.plan_opening(base)
    assert "spread over 2" in plan.placement.reason and plan.placement.reason in plan.describe()
    assert session.open_model(base).placed == plan.placement and loaded == [plan.placement.kwargs]


def test_layers_are_spread_over_several_gpus_where_one_is_too_small() -> None:
    one = plan_training(MACHINES["T4"], BASES["7B"], ROWS)
    two = plan_training(replace(MACHINES["T4"], gpus=2), BASES["7B"], ROWS)
    assert not one.spread_layers and one.quantization != "none"
    assert two.fits and two.spread_layers and two.quantization == "none" and "spread over 2" in two.reason
    assert two.memory.weights > BASES["7B"].parameters  # in bytes: half of two a weight, and a layer
    assert apply_plan(RunConfig(), two).spread_layers and not apply_plan(RunConfig(), one).spread_layers
    assert not plan_training(replace(MACHINES["A100"], gpus=2), BASES["7B"], ROWS).spread_layers


def test_layers_are_spread_in_one_process_with_several_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cuda = make_config(spread_layers=True), DevicePlan("cuda", "bfloat16", "bfloat16", "")
    validate.check_config(config, cuda, 2)
    for plan, gpus, processes in ((cuda, 1, 1), (cuda, 2, 2), (DevicePlan("cpu", "float32", "float32", ""), 2, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        with pytest.raises(InputError, match="several GPUs in one process"):
            validate.check_config(config, plan, gpus)


def test_a_run_takes_one_gpu_or_spreads_the_base_over_all(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnTwoGpus(train_run.SFTConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    class Loaded(Exception): ...

    def load(*_: Any) -> None:
        raise Loaded(*_)

    monkeypatch.setattr(train_run, "SFTConfig", OnTwoGpus)
    monkeypatch.setattr(train_run.base, "load_base_model", load)
    prepared = prepare_run(make())
    args = train_run.make_sft_config(prepared, tmp_path)
    assert (args.n_gpu, args.train_batch_size) == (1, 4), "nn.DataParallel would double the batch"
    for spread, placed in ((False, None), (True, {"device_map": "auto"})):
        config = prepared.config.model_copy(update={"spread_layers": spread})
        with pytest.raises(Loaded) as loaded:
            train_run.build_trainer(replace(prepared, config=config), None, None, None)  # type: ignore[arg-type]
        assert loaded.value.args[-1] == placed
