"""The catalogue of known base models (catalogue.json): licence, size, chat template, and what each is good at.

Any other Hub id works too; the tests take the architectures of these through mask, training, chat and merge. Models
that need code from their repository, for the model or its tokenizer, are left out. Null means unknown; no model was
downloaded to check a fact. The facts come from the models' own cards, but for two families, gathered on 27 November
2026 without their Hub pages: licence and context of Gemma 4 and Qwen3.5 from copies of cards and a Google documentation
page; Gemma 4's rounded sizes from a specification page and listings of the Hub; Qwen3.5's millions counted from shapes,
some of them remembered and not read. Whether they are gated was not confirmed. Sizes and licences of GPT-2, BLOOM and
Falcon come from stored copies of their file listings on the Hub, those of Llama 2 from listings of copies of it, all
read on that day.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from persona.errors import Message, join

CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")


class KnownModel(BaseModel):
    """One base model of the catalogue, and what it needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="on the Hugging Face Hub")
    family: str = Field(min_length=1)
    architecture: str = Field(min_length=1, description="model_type of its config.json")
    parameters: int = Field(gt=0, description="millions, as stored: with embeddings and towers")
    stored_bytes: int = Field(default=2, gt=0, description="of each parameter; 4 where it is stored in float32")
    licence: str = Field(min_length=1)
    licence_url: str = Field(pattern=r"^https://")
    gated: bool | None = Field(description="whether its licence must be accepted on its page first; null: unknown")
    template: str = Field(min_length=1, description="a name in templates/chat")
    kind: Literal["pretrained", "instruct"]
    needs: str = Field(default="", description="a Python package that transformers needs for it, not installed here")
    context: int | None = Field(gt=0, description="tokens, without scaled positions; null: unknown")
    en: str = Field(min_length=1, description="what it is good at")
    zh: str = Field(min_length=1)

    @property
    def download_gb(self) -> float:
        """Gigabytes to download, roughly."""
        return self.stored_bytes * self.parameters / 1000

    @property
    def weights_gb(self) -> float:
        """Gigabytes of the weights in bfloat16."""
        return 2 * self.parameters / 1000

    @property
    def chat_gb(self) -> float:
        """Gigabytes of memory for a chat in bfloat16, roughly; in float32, as on a CPU, twice that."""
        return self.weights_gb + 0.7

    @property
    def train_gb(self) -> float:
        """Gigabytes of memory for a LoRA run, roughly, with batches of 8 rows of about 64 tokens.

        The weights in bfloat16, and for activations, logits and optimizer a third of that plus 2 GB. memory.py gives
        the exact estimate once the base is downloaded.
        """
        return self.weights_gb * 4 / 3 + 2

    @property
    def about(self) -> str:
        """Size, licence, terms and what it needs, in one line for people."""
        consent = {True: Message("asks for consent on its page"), False: "",
                   None: Message("may ask for consent on its page")}  # fmt: skip
        package = Message("needs pip install {package}", package=self.needs) if self.needs else ""
        return join(", ", [format_gb(self.download_gb), self.licence, consent[self.gated], package])


def format_gb(size: float) -> str:
    """A size in gigabytes as text: 16.4 GB, 536 MB."""
    return f"{size:.1f} GB" if size >= 1 else f"{1000 * size:.0f} MB"


@lru_cache(maxsize=1)
def load_catalogue() -> tuple[KnownModel, ...]:
    """Every base model of the catalogue, ordered by family."""
    return TypeAdapter(tuple[KnownModel, ...]).validate_python(json.loads(CATALOGUE_FILE.read_text(encoding="utf-8")))


def find_known_model(base_id: str) -> KnownModel | None:
    """The catalogue's entry for a Hub id, in any case; None for a base that it does not know."""
    return next((e for e in load_catalogue() if e.id.lower() == base_id.lower()), None)


PRETRAINED_TEMPLATES = ("gemma-base", "alpaca-en", "alpaca-zh")  # chosen for a base without a chat format of its own


def is_instruction_tuned(base_id: str, template: str) -> bool:
    """Whether a base was tuned to answer: by the catalogue, else by the name of the template it is asked with."""
    known = find_known_model(base_id)
    return known.kind == "instruct" if known else template not in PRETRAINED_TEMPLATES
