"""The evidence in a count of votes: win rate, interval, and how many more votes would settle it. Pure numbers.

The win rate is that of the *decisive* votes: ties are left out, as in the sign test (Dixon & Mood 1946), and shown
beside it. Its interval is the exact one of Clopper & Pearson (1934), which holds 95 % whatever the number of votes.
Wilson's is narrower, but after 4 wins of 4 it would call settled what a fair coin does one time in eight; the page
shows the count after every vote, so the conservative one is used. "Significant" means that it excludes 50 %.
Stopping at the first "settled" is still wrong more often than one time in 20: a number of votes decided on beforehand
is the better evidence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from persona.errors import Message

ALPHA = 0.05
MAX_VOTES_NEEDED = 1_000  # more votes than this are "too close to tell", not a plan
_Z2 = 1.959964**2  # of the normal distribution's 97.5 % point


@dataclass(frozen=True)
class WinRate:
    """wins of decisive votes, and the 95 % interval of the rate, from 0 to 1. Without votes: 0 to 1."""

    wins: int
    decisive: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """None without a decisive vote."""
        return self.wins / self.decisive if self.decisive else None

    @property
    def settled(self) -> bool:
        return self.low > 0.5 or self.high < 0.5


def estimate_win_rate(wins: int, decisive: int) -> WinRate:
    """Clopper & Pearson (1934), Biometrika 26:404-413: the rates under which a tail as far as this has ALPHA / 2."""
    low = 0.0 if wins == 0 else _solve(lambda p: binomial_tail(wins, decisive, p))
    high = 1.0 if wins == decisive else 1 - _solve(lambda p: binomial_tail(decisive - wins, decisive, p))
    return WinRate(wins, decisive, low, high)


def _solve(tail: Callable[[float], float]) -> float:
    """The rate at which the tail, which grows with it, is ALPHA / 2; by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) < ALPHA / 2 else (low, middle)
    return (low + high) / 2


def binomial_tail(wins: int, votes: int, p: float) -> float:
    """The chance of at least `wins` wins in `votes` votes at rate p (0 < p < 1)."""
    return _upper_tail(wins, votes, p) if wins > votes * p else 1 - _upper_tail(votes - wins + 1, votes, 1 - p)


def _upper_tail(wins: int, votes: int, p: float) -> float:
    """The same for more wins than p makes likely: each term is then smaller than the one before."""
    if wins > votes:
        return 0.0
    choose = math.lgamma(votes + 1) - math.lgamma(wins + 1) - math.lgamma(votes - wins + 1)
    term = math.exp(choose + wins * math.log(p) + (votes - wins) * math.log1p(-p))
    total = 0.0
    for k in range(wins, votes + 1):
        total += term
        term *= (votes - k) / (k + 1) * p / (1 - p)
        if term < total * 1e-17:
            break
    return total


def sign_test(wins: int, votes: int) -> float:
    """p value of the two-sided sign test: how often a fair coin would be at least as far from half."""
    return min(1.0, 2 * binomial_tail(max(wins, votes - wins), votes, 0.5)) if votes else 1.0


def votes_needed(wins: int, decisive: int) -> int | None:
    """How many more decisive votes settle it if the rate stays; None for a tie, or beyond MAX_VOTES_NEEDED.

    The search starts at a normal approximation, n = (z / (2 rate - 1))², and ends with the exact test.
    """
    most = max(wins, decisive - wins)
    if not decisive or 2 * most == decisive:
        return None
    start = max(decisive + 1, int(_Z2 / (2 * most / decisive - 1) ** 2))
    for total in range(start, decisive + MAX_VOTES_NEEDED + 1):
        if sign_test(most * total // decisive, total) < ALPHA:
            return total - decisive
    return None


def describe_evidence(wins: int, decisive: int, votes: int) -> str:
    """In words, whether it is settled, else how many more votes, ties included, it would take."""
    if not votes:
        return Message("No vote yet.")
    if not decisive:
        return Message("No answer was preferred yet: ties and “both bad” do not tell the two apart.")
    if sign_test(wins, decisive) < ALPHA:
        return Message(
            "Statistically significant (p < 0.05): chance alone would be this far from half less than one time in 20."
        )
    if 2 * wins == decisive:
        return Message("Level so far: if it goes on like this, no number of votes will settle it.")
    decisive_more = votes_needed(wins, decisive)
    more = math.ceil(decisive_more * votes / decisive) if decisive_more else MAX_VOTES_NEEDED + 1
    if more > MAX_VOTES_NEEDED:
        return Message(
            "Nearly level: it would take more than {far:,} more votes if it goes on like this.", far=MAX_VOTES_NEEDED
        )
    if more > 1:
        return Message("About {more:,} more votes if it goes on like this.", more=more)
    return Message("About 1 more vote if it goes on like this.")
