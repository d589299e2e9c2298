"""What a value of the config may be: rules that say it in words and check it.

Torch-free, like `options`: a mistake on the command line is reported before torch is imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_type_hints

from mnist_exp.errors import did_you_mean

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
    most = sys.float_info.max  # to which nan is not comparable
    return Rule(allowed, (int, float), lambda value: abs(value) <= most and test(value))


def matching(allowed: str, pattern: str, words: tuple[str, ...] = ()) -> Rule:
    return Rule(allowed, (str,), lambda value: re.fullmatch(pattern, value) is not None, words)


def one_of(*words: str) -> Rule:
    return Rule(" | ".join(words), (str,), lambda value: value in words, words)


def flag_or(*words: str) -> Rule:
    either = (True, False, *words)
    return Rule(" | ".join(["true", "false", *words]), (bool, str), either.__contains__, words)


def or_word(rule: Rule, word: str) -> Rule:
    return Rule(
        f"{rule.allowed} or {word}",
        (*rule.types, str),
        lambda value: value == word or rule.admits(value),
        (word,),
    )


def optional(rule: Rule) -> Rule:
    allowed, types = f"null or {rule.allowed}", (NoneType, *rule.types)
    return Rule(allowed, types, lambda value: value is None or rule.test(value), rule.words)


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
