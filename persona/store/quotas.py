"""Limits for visitors of a shared server, set by environment variables. The owner's own work has none.

    PERSONA_MAX_PAIRS      pairs of one persona                              2000
    PERSONA_MAX_CHARS      characters of one persona's pairs            2,000,000
    PERSONA_MAX_PAIR_CHARS characters of one pair                          20,000
    PERSONA_MAX_STEPS      optimizer steps of one run                        500
    PERSONA_MAX_DISK_MB    megabytes of a visitor's workspace                1000
    PERSONA_MAX_REQUESTS   requests of a visitor's page in a minute         1200
    PERSONA_KEEP_DAYS      days that unused work is kept                    7

0 stands for no limit. The defaults suit a free Space: 2 CPUs, 50 GB of disk, half an hour for the longest run.
"""

import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from persona.errors import InputError, Message, join
from persona.store import deployment, workspace

MAX_CARD = 200_000  # characters of a visitor's persona.json: the page reads all of them for its list


@dataclass(frozen=True)
class Quotas:
    """0: no limit.

    chars: of all pairs of a persona; pair_chars: of one pair; disk_mb: of a workspace; requests: in a minute;
    keep_days: since the visitor was last seen.
    """

    max_pairs: int = 2000
    max_chars: int = 2_000_000
    max_pair_chars: int = 20_000
    max_steps: int = 500
    max_disk_mb: int = 1000
    max_requests: int = 1200
    keep_days: int = 7


UNLIMITED = Quotas(**{field.name: 0 for field in fields(Quotas)})


def read_quotas() -> Quotas:
    """The limits of this server; none where it is not shared. Raises InputError naming every variable that is wrong."""
    if not deployment.is_shared_server():
        return UNLIMITED
    given, wrong = {}, []
    for field in fields(Quotas):
        name = f"PERSONA_{field.name.upper()}"
        if text := os.environ.get(name, "").strip():
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                wrong.append(
                    Message("{name}={text}: it is a whole number, 0 for no limit.", name=name, text=f"{text!r:.40}")
                )
                continue
            given[field.name] = int(text)
    if wrong:
        raise InputError(join("\n", wrong))
    return Quotas(**given)


def current_quotas() -> Quotas:
    """The limits of the current visitor. Raises InputError as current_visitor() does."""
    return read_quotas() if workspace.current_visitor() else UNLIMITED


def suggest_alternative() -> str:
    """Where larger work can be done, as the last sentence of a message."""
    if deployment.is_hf_space():
        return Message("For more, duplicate this Space (step 5, Share), or run Persona on a computer of your own.")
    return Message("For more, run Persona on a computer of your own.")


def require_pair_quota(count: int) -> None:
    """Raises InputError when a persona would have more pairs than a visitor's may."""
    limit = current_quotas().max_pairs
    if limit and count > limit:
        raise InputError(
            "{count:,} pairs: on this server a persona may have {limit:,}. Nothing was changed; take fewer. {instead}",
            count=count,
            limit=limit,
            instead=suggest_alternative(),
        )


def require_characters_quota(characters: int) -> None:
    """Raises InputError when a persona's pairs would have more characters than a visitor's may."""
    limit = current_quotas().max_chars
    if limit and characters > limit:
        raise InputError(
            "{count:,} characters: on this server the pairs of a persona may have {limit:,} together. Nothing was "
            "changed; take fewer, or shorten the longest. {instead}",
            count=characters,
            limit=limit,
            instead=suggest_alternative(),
        )


def require_pair_length_quota(row: int, characters: int) -> None:
    """Raises InputError when a pair (row from 1) would have more characters than a visitor's may."""
    limit = current_quotas().max_pair_chars
    if limit and characters > limit:
        raise InputError(
            "Pair {row} has {count:,} characters: on this server a pair may have {limit:,}, earlier turns included. It "
            "is not saved. Split it. {instead}",
            row=row,
            count=characters,
            limit=limit,
            instead=suggest_alternative(),
        )


def require_card_quota(characters: int) -> None:
    """Raises InputError when a card with everything in it would be longer than a visitor's may."""
    if workspace.is_for_visitor() and characters > MAX_CARD:
        raise InputError(
            "Name, system prompt, source and all else that is known of a persona have {count:,} characters together: "
            "on this server they may have {limit:,}. Shorten them. {instead}",
            count=characters,
            limit=MAX_CARD,
            instead=suggest_alternative(),
        )


def require_step_quota(steps: int) -> None:
    """Raises InputError when a run would be longer than a visitor's may."""
    limit = current_quotas().max_steps
    if limit and steps > limit:
        raise InputError(
            "This run has {steps:,} steps, where this server trains {limit:,} at most, so that others have "
            "their turn. Lower the passes over the pairs (epochs), or set max_steps to {limit}. {instead}",
            steps=steps,
            limit=limit,
            instead=suggest_alternative(),
        )


def require_disk_quota(*more: Path) -> None:
    """Raises InputError when a visitor's workspace is full. Their trash is emptied first. more: what counts with it."""
    limit = current_quotas().max_disk_mb * 1_000_000
    if not limit:
        return
    home = workspace.current_workspace()
    if (used := sum(map(folder_size, (home, *more)))) > limit and (home / "trash").exists():
        shutil.rmtree(home / "trash", ignore_errors=True)
        used = sum(map(folder_size, (home, *more)))
    if used > limit:
        raise InputError(
            "Your work here fills {used:,.0f} MB, where this server has {limit:,.0f} MB for each visitor. "
            "Download what you want to keep, then delete a persona. {instead}",
            used=used / 1e6,
            limit=limit / 1e6,
            instead=suggest_alternative(),
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total
