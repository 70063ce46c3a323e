"""Tables of cases inside one test: all are tried, and the failure names each case that fails."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest


def check_each(cases: Iterable[Any] | Mapping[str, Any], check: Callable[..., None]) -> None:
    """Call check(*case) for each case; a failure names the key of a mapping, else the case itself."""
    named = cases.items() if isinstance(cases, Mapping) else ((None, case) for case in cases)
    failed, count = [], 0
    for name, case in named:
        count += 1
        values = case if isinstance(case, tuple) else (case,)
        try:
            check(*values)
        except (Exception, pytest.fail.Exception) as e:
            frames = traceback.extract_tb(e.__traceback__)
            lines = [f.lineno for f in frames if f.filename == check.__code__.co_filename]
            failed.append(f"{name or repr(case):.300} {lines[-1:]}: {type(e).__name__}: {e}")
    assert count, "no cases"
    if failed:
        pytest.fail(f"{len(failed)} of {count} cases:\n" + "\n".join(failed), pytrace=False)
