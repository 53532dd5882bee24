"""What is wrong with a user's condition, in plain words: DuckDB's own speak of casts, binders and literals."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from weightsearch.index.database import COLUMNS

COLUMNS_LISTED = 100  # in an error
EXAMPLE = 'write one condition such as "test_accuracy > 0.9"'
OPERATORS = {
    "~~": "like", "!~~": "not like", "~~*": "ilike", "!~~*": "not ilike", "~~~": "glob", "~": "similar to"
}  # fmt: skip


def suggestion(name: str, columns: Sequence[str]) -> str:
    """`; did you mean NAME?`, where a known column is much like it."""
    close = difflib.get_close_matches(name.lower(), [*COLUMNS, *columns], 1, 0.75)
    return f"; did you mean {close[0]}?" if close else ""


def unreadable(message: str, where: str) -> str:
    """Why a condition cannot be read, from the parser's message."""
    text = message.splitlines()[0] if message else ""
    if not where.strip():
        return f"it is empty; {EXAMPLE}"
    if "Only SELECT" in text:
        return f"it is more than one expression; {EXAMPLE}"
    if place := re.search(r'at or near "([^"]*)"', text):
        return f"it cannot be read at {place[1]!r}; {EXAMPLE}"
    if "depth limit" in text:
        return "it is nested too deeply, or joins too many conditions"
    if "unterminated" in text:
        return f"""a {'"' if "identifier" in text else "'"} in it is not closed; {EXAMPLE}"""
    return f"it cannot be read; {EXAMPLE}"


def fault(message: str, names: Sequence[str]) -> str:
    """Why a condition that can be read is none for these columns, from the message of who computed it."""
    text = message.splitlines()[0] if message else ""
    if column := re.search(r'Referenced column "([^"]+)" (?:not found|was not found)', text):
        return _no_column(column[1], names)
    for pattern, words in _FAULTS:
        if match := re.search(pattern, text):
            return words.format(*(_shown(group) for group in match.groups()))
    if match := re.search(r"arguments? types? '([^(]+)\((.*)\)'", text):
        function, kinds = match.groups()
        called = OPERATORS.get(function, function if not function[0].isalpha() else f"{function}()")
        given = " and ".join(_kind(kind) for kind in kinds.split(", ")) if kinds else "nothing"
        return f"{called} takes other values than {given}"
    if match := re.search(r"cast \(?(\S+) -> ([^)\s]+)", text):
        return f"it takes {_kind(match[1])} for {_kind(match[2])}"
    if match := re.search(r"values of type (\S+) and (\S+) in", text):
        return f"it compares {_kind(match[1])} with {_kind(match[2])}; texts stand in '...'"
    if match := re.search(r"(?:missing|invalid|bad|no argument|unexpected|trailing)[^:]*: ([^:]*)$", text):  # RE2's
        return f"the regular expression in it is broken at {_shown(match[1])!r}"
    return f"it cannot be computed for these columns; {EXAMPLE}"


# Messages' parts, and what is said instead; braces are for what the parts' groups caught.
_FAULTS = (
    (r'Referenced table "([^"]+)"', "columns have no table before their name: write the column alone, without {}."),
    (r"Could not convert string '([^']*)' to \w+", "'{}' is no number, and is compared with one; texts stand in '...'"),
    (r'invalid \w+ field format: "([^"]*)"', "'{}' is no date, and is compared with one; dates are '2026-01-31'"),
    (r'Could not parse string "([^"]*)"', "'{}' is no date of that format"),
    (r"format specifier (%\S*?):?(?:\s|$)", "{} is no part of a date's format"),
    (r'specifier "([^"]*)" not recognized', "'{}' is no part of a date; there are year, month, day, hour and so on"),
    (r"Type with name (\S+) does not exist", "{} is no type; there are DOUBLE, TEXT, DATE and so on"),
    (r"Collation with name (\S+) does not exist", "there is no collation {}"),
    (r"Malformed JSON", "it looks for a key in a text that is no JSON"),
    (r"[Ee]scape string", "behind escape stands one character"),
    (r"out of range|[Oo]verflow", "a number in it is too large"),
    (r"[Rr]egular expression|regex", "the regular expression in it is broken"),
)


def _no_column(name: str, names: Sequence[str]) -> str:
    if close := suggestion(name, names):
        return f"there is no column {name}{close} (`weightsearch info` lists all columns)"
    more = ", ..." if len(names) > COLUMNS_LISTED else ""
    return f"there is no column {name} (columns: {', '.join(names[:COLUMNS_LISTED])}{more}); texts stand in '...'"


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _kind(name: str) -> str:
    """A type of DuckDB's in words."""
    name = name.upper()
    if name.endswith("[]"):
        return "a list"
    if name.startswith(("VARCHAR", "STRING", "CHAR", "JSON")):
        return "a text"
    if name.startswith(("DATE", "TIME", "INTERVAL")):
        return "a date"
    if name.startswith("BOOL"):
        return "a yes or no"
    if re.search(r"INT|DOUBLE|FLOAT|DECIMAL|REAL|NUMERIC", name):
        return "a number"
    return "something else" if name != "NULL" else "nothing"
