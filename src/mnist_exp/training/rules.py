"""What a value of the config may be: rules that say it in words and check it.

Torch-free, like `options`: a mistake on the command line is reported before torch is imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_type_hints

Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Rule:
    """What a value may be: in words, by its type, and by a test of values of that type."""

    allowed: str
    types: tuple[type, ...] = ()  # exactly these, so that true is no integer; none: any
    test: Test = lambda value: True
    words: tuple[str, ...] = ()  # the values themselves, where there are few

    def admits(self, value: Any) -> bool:
        return (not self.types or type(value) in self.types) and self.test(value)

    def wrong(self, value: Any) -> str | None:
        """What the value must be, and which is nearest, if it is not that."""
        if self.admits(value):
            return None
        return f"must be {self.allowed}{did_you_mean(str(value), self.words)}"


def integer(low: int, high: int | None = None) -> Rule:
    if high is None:
        return Rule(f"an integer >= {low}", (int,), lambda value: value >= low)
    return Rule(f"an integer from {low} to {high}", (int,), lambda value: low <= value <= high)


def number(allowed: str, test: Test = lambda value: True) -> Rule:
    def finite_and(value: Any) -> bool:
        return abs(value) <= sys.float_info.max and test(value)  # false for nan, too

    return Rule(allowed, (int, float), finite_and)


def one_of(*words: str) -> Rule:
    return Rule(" | ".join(words), (str,), lambda value: value in words, words)


def flag_or(*words: str) -> Rule:
    def flag_or_word(value: Any) -> bool:
        return isinstance(value, bool) or value in words

    return Rule(" | ".join(["true", "false", *words]), (bool, str), flag_or_word, words)


def optional(rule: Rule) -> Rule:
    def none_or(value: Any) -> bool:
        return value is None or rule.test(value)

    return Rule(f"null or {rule.allowed}", (NoneType, *rule.types), none_or, rule.words)


def list_of(rule: Rule) -> Rule:
    return Rule(f"a list, each {rule.allowed}", (list,), lambda value: all(map(rule.admits, value)))


def per_channel(rule: Rule, word: str) -> Rule:
    each = list_of(rule)
    return Rule(
        f"{word}, {rule.allowed}, or a list of them, one for each channel",
        (*rule.types, str, list),
        lambda value: value == word or rule.admits(value) or (each.admits(value) and value != []),
        (word,),
    )


def is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def is_device(name: str) -> bool:
    return re.fullmatch("auto|cpu|mps|cuda(:[0-9]+)?", name) is not None


flag = Rule("true or false", (bool,))
text = Rule("text that is not empty", (str,), lambda value: value != "")
finite = number("a finite number")
positive = number("a number > 0", lambda value: value > 0)
not_negative = number("a number >= 0", lambda value: value >= 0)
fraction = number("a number from 0 up to but not including 1", lambda value: 0 <= value < 1)
seed = integer(0, 2**32 - 1)


def rules_of(options: type) -> dict[str, Rule]:
    """The rule of each field of a dataclass, from its type: `Annotated[type, rule]`."""
    hints = get_type_hints(options, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def did_you_mean(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """A closing question that names the nearest of `words`, or nothing where none is near."""
    near = get_close_matches(word, list(words), 1, cutoff)
    return f"; did you mean {near[0]}?" if near else ""
