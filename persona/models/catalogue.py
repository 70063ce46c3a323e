"""The bases that Persona knows: what each is, under which licence, how large, and what it is good at (bases.json).

Any other Hub id works too; these are the ones whose architecture the tests take through mask, training, chat and merge.
What needs code from its repository, or a tokenizer that only such code can open, is not among them. The facts are those
of the models' own cards; null is unknown. Nothing here was downloaded to check it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from persona.errors import Message, join

CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")


class KnownModel(BaseModel):
    """One base of the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="on the Hugging Face Hub")
    family: str = Field(min_length=1)
    architecture: str = Field(min_length=1, description="model_type of its config.json")
    parameters: int = Field(gt=0, description="millions, as stored: with embeddings and towers")
    licence: str = Field(min_length=1)
    licence_url: str = Field(pattern=r"^https://")
    gated: bool | None = Field(description="whether its page asks for consent and a login first; null: unknown")
    template: str = Field(min_length=1, description="of templates/chat")
    kind: Literal["pretrained", "instruct"]
    needs: str = Field(default="", description="a Python package that transformers wants for it, not installed here")
    context: int | None = Field(gt=0, description="tokens, without stretching; null: unknown")
    en: str = Field(min_length=1, description="what it is good at")
    zh: str = Field(min_length=1)

    @property
    def download_gb(self) -> float:
        """Gigabytes, about: two bytes a parameter (bfloat16), as all of them are stored."""
        return 2 * self.parameters / 1000

    @property
    def chat_gb(self) -> float:
        """Gigabytes of memory for a chat, roughly, in bfloat16; on a CPU, in float32, it is twice that."""
        return self.download_gb + 0.7

    @property
    def train_gb(self) -> float:
        """Gigabytes of memory for a LoRA run, roughly: bfloat16 weights, and a third of that and two more for
        activations, logits and optimizer, for batches of 8 rows of about 64 tokens. memory.py counts it properly once
        the base is here.
        """
        return self.download_gb * 4 / 3 + 2

    @property
    def about(self) -> str:
        """Size, licence, terms and what it needs, in a line."""
        consent = {True: Message("asks for consent on its page"), False: "",
                   None: Message("may ask for consent on its page")}  # fmt: skip
        package = Message("needs pip install {package}", package=self.needs) if self.needs else ""
        return join(", ", [format_gb(self.download_gb), self.licence, consent[self.gated], package])


def format_gb(size: float) -> str:
    """Gigabytes in words: 16.4 GB, 536 MB."""
    return f"{size:.1f} GB" if size >= 1 else f"{1000 * size:.0f} MB"


@lru_cache(maxsize=1)
def load_catalogue() -> tuple[KnownModel, ...]:
    """Every base of bases.json, in its order: by family."""
    return TypeAdapter(tuple[KnownModel, ...]).validate_python(json.loads(CATALOGUE_FILE.read_text(encoding="utf-8")))


def find_known_model(base_id: str) -> KnownModel | None:
    """The entry of a Hub id, whatever its case; None for a base that is not in the catalogue."""
    return next((e for e in load_catalogue() if e.id.lower() == base_id.lower()), None)
