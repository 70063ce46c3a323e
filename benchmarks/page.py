"""The page in a separate process with its own home: start, measure and kill it, and bases and adapters to fill it with.

The tiny base, a random Gemma 3 of two layers, takes the place of the converted embedded base. It loads instantly, so
that the page is measured and not the model.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from persona.models import adapter, base, bundled
from persona.models.base import Base
from persona.models.bundled import BUNDLED_MODELS
from persona.share import archive
from persona.store import files
from persona.store.persona_folder import PersonaCard
from persona.store.workspace import PROJECT_DIR
from persona.template.chat_template import read_template
from persona.train import lora_config
from persona.train.config import make_config
from persona.train.run_folder import Run

CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
CORPUS = [
    "Who keeps this light? I do, and the kettle is on.",
    "你是谁？外头风凉，进来坐，茶已沏上了。",
    "user\nmodel\n\n",
]
START_SECONDS = 120


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Poll until `condition()` is true. Raises TimeoutError after that many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds} s")
        time.sleep(0.005)


class Page:
    """`python app.py` on a free port. home: its PERSONA_HOME; its temporary files are in `home`/tmp.

    before: a prefix of the command. env: additional environment variables.
    """

    def __init__(self, home: Path, before: tuple[str, ...] = (), **env: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        self.before = before
        self.home, self.url, self.log = home, f"http://127.0.0.1:{port}", home / "page.log"
        self.tmp = home / "tmp"
        self.tmp.mkdir(parents=True, exist_ok=True)
        self.env = {**os.environ, "PERSONA_HOME": str(home), "PORT": port, "HOST": "127.0.0.1", "TMPDIR": str(self.tmp),
                    "HF_HUB_OFFLINE": "1", **env}  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start, or start again after a kill; returns when the page answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*self.before, sys.executable, "app.py"], cwd=PROJECT_DIR, env=self.env,
                                            stdout=log, stderr=log)  # fmt: skip
        try:
            wait_for(self._answers, START_SECONDS, "the page's first answer")
        except OSError as e:
            self.kill()
            raise RuntimeError(f"The page did not start ({e}): {self.log.read_text()[-2000:]}") from e

    def _answers(self) -> bool:
        """Whether the page answers. Raises ChildProcessError when its process has ended."""
        with contextlib.suppress(OSError):
            urllib.request.urlopen(self.url, timeout=10).close()
            return True
        if self.process.poll() is not None:
            raise ChildProcessError("its process has ended")
        return False

    def kill(self) -> None:
        """SIGKILL to the page, but not to the processes it has started."""
        self.process.kill()
        self.process.wait()

    def close(self, home: Path | None = None) -> None:
        """Kill the page and every run that it has started. home: its home as seen from here, if different."""
        try:
            kill_trainers(home or self.home)
        finally:
            self.kill()

    def rss(self) -> int:
        """Resident memory of the page's own process, in bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def measured(self) -> dict[str, int]:
        """What could grow with use: memory, open files, threads, temporary files, bytes on disk."""
        p = psutil.Process(self.process.pid)
        kept = [f for f in self.home.rglob("*") if f.is_file() and self.tmp not in f.parents and "bases" not in f.parts]
        return {"rss": self.rss(), "files": p.num_fds(), "threads": p.num_threads(),
                "temporary": sum(1 for f in self.tmp.rglob("*") if f.is_file()),
                "kept": sum(f.stat().st_size for f in kept if f != self.log)}  # fmt: skip


@contextlib.contextmanager
def opened(home: Path, **env: str) -> Iterator[Page]:
    page = Page(home, **env)
    try:
        yield page
    finally:
        page.close()


@contextlib.contextmanager
def opened_with_adapter(tiny: bool, **env: str) -> Iterator[tuple[Page, Path]]:
    """A page with a workspace for each visitor, as on a Space, in a home of its own, and the zip of an adapter.

    tiny: its base has two layers; else it is the embedded one.
    """
    with tempfile.TemporaryDirectory(prefix="persona-load-") as folder:
        home = Path(folder)
        zipped = drawn_adapter(put_tiny_base(home) if tiny else link_embedded_base(home), home / "mags.zip")
        with opened(home, PERSONA_SHARED="1", **env) as page:
            yield page, zipped


def trainers(home: Path) -> list[psutil.Process]:
    """The live processes that train, or wait to train, a run under `home`."""
    return [p for note in home.glob("**/runs/*/worker.json") if (p := Run(note.parent).process())]


def kill_trainers(home: Path) -> None:
    """SIGKILL to the process of every run; returns when all have ended."""
    for process in trainers(home):
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_for(lambda: not trainers(home), 30, "the end of the runs")


def persona_folder(home: Path, name: str) -> Path:
    """The folder of the persona of that name, in any workspace under `home`."""
    for file in home.glob("**/persona.json"):
        if "runs" not in file.parts and "adapters" not in file.parts and json.loads(file.read_text())["name"] == name:
            return file.parent
    raise LookupError(f"{name}: not under {home}")


def pairs_on_disk(folder: Path) -> list[tuple[str, str]]:
    rows = (json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").split("\n") if line)
    return [(r["instruction"], r["output"]) for r in rows]


# ---- bases and adapters


def put_tiny_base(home: Path) -> Base:
    """Put a random Gemma 3 of two layers in the place of the embedded base."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learn = trainers.BpeTrainer(vocab_size=400, special_tokens=CONTROLS, show_progress=False,
                                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, learn)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
                                   padding_side="right", clean_up_tokenization_spaces=False)  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, sliding_window=16, layer_types=["sliding_attention", "full_attention"],
        bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    e = BUNDLED_MODELS[bundled.DEFAULT_BASE]
    place = home / "bases" / f"{e.name}-{e.sha256[:12]}"
    Gemma3ForCausalLM(config).save_pretrained(place)
    fast.save_pretrained(place)
    made = Base(e.hub_id, place, "tiny")
    (place / "base.json").write_text(files.to_json(made.to_dict()))
    return made


def link_embedded_base(home: Path) -> Base:
    """Link to the real embedded base in the user's own home, converted there once."""
    found = base.resolve_base(bundled.DEFAULT_BASE)
    home.mkdir(parents=True, exist_ok=True)
    (home / "bases").symlink_to(found.path.parent, target_is_directory=True)
    return found


def drawn_adapter(found: Base, out: Path, name: str = "Mags", seed: int = 1) -> Path:
    """A zip with an adapter of random, untrained weights, which answers differently from the base."""
    import torch
    from peft import get_peft_model

    plain = base.load_base_model(found, "float32")
    settings = make_config(lora_r=4, lora_alpha=8)
    model = get_peft_model(plain, lora_config.make_lora_config(settings, plain))
    torch.manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(weight, std=0.1)
    folder = out.with_suffix("")
    figures = {"train_rows": 9, "held_out_rows": 1, "steps": 3, "base_nll": 4.0, "adapter_nll": 3.0}
    facts = {"config": settings.model_dump(), "figures": figures}
    adapter.save_adapter(model, folder, base=found, template=read_template("gemma-base"), facts=facts,
                  card=PersonaCard(name=name, system="You keep the light.", language="en"))  # fmt: skip
    archive.pack_adapter(folder, out)
    shutil.rmtree(folder)
    return out
