"""The budget of a file to import: how much may come out of it, by its size, whatever its format."""

from pathlib import Path

from persona.errors import InputError

MAX_BYTES = 2_000_000_000  # as much as the largest plain file has
MIN_BYTES = 20_000_000  # for the smallest file, which may well repeat one prompt in all its rows
MAX_RATIO = 200  # what comes out to the file's size; sheets of text reach 20, a bomb a thousand and more
ROW_BYTES, CELL_BYTES = 64, 8  # of an empty row and an empty cell: they cost work too


class OverBudgetError(Exception):
    """More came out of a file than its budget."""


class Budget:
    """Bytes or characters that may still come out of a file. limit: of the file as a whole."""

    def __init__(self, limit: int) -> None:
        self.limit = self.left = limit

    @classmethod
    def for_file(cls, path: Path) -> "Budget":
        return cls(min(MAX_BYTES, max(MIN_BYTES, MAX_RATIO * path.stat().st_size)))

    def spend(self, size: int) -> None:
        """Raises OverBudgetError when nothing is left."""
        self.left -= size
        if self.left < 0:
            raise OverBudgetError


def over_budget(name: str, limit: int) -> InputError:
    return InputError(
        "{source}: more than {limit:,.0f} MB come out of it, which is the limit for a file of its size. Split it, or "
        "save what you need of it as CSV.",
        source=name,
        limit=limit / 1e6,
    )
