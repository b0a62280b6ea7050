"""What a check of an evaluation says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """What one check says.

    Attributes:
        name: of the check, short.
        passed: None where it says nothing either way.
        values: the numbers behind it, as JSON.
        text: the result in words.
        advice: what to do where it has not passed, else "".
    """

    name: str
    passed: bool | None
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""
