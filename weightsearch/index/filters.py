"""A user's `--where`: one expression in DuckDB's SQL over the rows' columns, recipe keys and the user's own columns."""

from __future__ import annotations

import json
import threading
from typing import Any

import duckdb
import numpy as np

from weightsearch.errors import UsageError
from weightsearch.index import checks, database
from weightsearch.index.database import COLUMNS
from weightsearch.index.filter_faults import EXAMPLE, fault, unreadable
from weightsearch.types import Selection

LONGEST = 10_000  # characters
SECONDS = 30.0  # that a filter may take
# What an expression may be made of: comparisons, and functions of single values whose results are no larger than those.
_CLASSES = frozenset(
    {
        *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"),
        *("OPERATOR", "TYPE"),
    }
)
_FUNCTIONS = frozenset(
    {
        *(
            "+",
            "-",
            "*",
            "/",
            "//",
            "%",
            "**",
            "^",
            "~~",
            "!~~",
            "~~*",
            "!~~*",
            "~",
            "~~~",
            "||",
            "->",
            "->>",
            "&",
            "|",
        ),
        *("<<", ">>", "@", "^@", "abs", "ceil", "ceiling", "floor", "round", "trunc", "sign", "sqrt", "cbrt", "exp"),
        *("ln", "log", "log2", "log10", "pow", "power", "mod", "pi", "isnan", "isinf", "isfinite", "greatest", "least"),
        *("lower", "upper", "lcase", "ucase", "length", "len", "strlen", "trim", "ltrim", "rtrim", "left", "right"),
        *("substr", "substring", "contains", "prefix", "suffix", "starts_with", "ends_with", "instr", "strpos"),
        *("position", "regexp_matches", "regexp_full_match", "regexp_extract", "split_part", "reverse", "like_escape"),
        *(
            "ilike_escape",
            "not_like_escape",
            "not_ilike_escape",
            "ifnull",
            "nullif",
            "coalesce",
            "year",
            "month",
            "day",
        ),
        *("hour", "minute", "second", "date_part", "datepart", "date_trunc", "strptime", "try_strptime", "now"),
        *("current_date", "today", "json_extract", "json_extract_string", "json_valid", "list_value", "row", "typeof"),
    }
)

# Types to cast to: of single values, since a vector of arrays takes as much memory as its maker wants.
_TYPES = frozenset(
    {
        *("boolean", "bool", "tinyint", "smallint", "integer", "int", "bigint", "hugeint", "utinyint", "usmallint"),
        *("uinteger", "ubigint", "uhugeint", "float", "real", "double", "decimal", "numeric", "varchar", "text"),
        *("string", "char", "date", "time", "timestamp", "datetime", "timestamp with time zone", "timestamptz"),
        *("interval", "json", "uuid", "blob"),
    }
)
_JOINED = 16  # texts joined, and values that lists are made of: each takes memory for all rows, and so do those between
_OF_JSON = ("json_extract", "json_extract_string", "->", "->>")

# Parts of a parsed SELECT that `WHERE <expression>` alone leaves empty.
_BEYOND_WHERE = ("modifiers", "group_expressions", "group_sets", "having", "sample", "qualify")


def passing(connection: duckdb.DuckDBPyConnection, fingerprint: str, where: str) -> np.ndarray:
    """Numbers `(m,)`, ascending, of the architecture's rows for which `where` holds.

    Raises UsageError, in one line, for what is not one expression, and for unknown columns with the known ones.
    """
    asked = check(connection, where)
    types = database.key_types(connection)
    keys = list({name.lower(): name for name in types}.values())  # SQL's names have no case
    wanted = [name for name in keys if name.lower() in asked]  # a stranger's recipes may have thousands
    selected = [*COLUMNS, *(f'{database.json_sql(name, types[name])} AS "{name}"' for name in wanted)]
    checks.verify(connection, fingerprint, database.read_from(asked))
    alarm = threading.Timer(SECONDS, connection.interrupt)
    alarm.daemon = True
    alarm.start()
    try:
        rows = connection.execute(
            f"SELECT number FROM (SELECT {', '.join(selected)} FROM {database.rows_sql(connection)} "
            f"WHERE architecture = ?) WHERE (\n{where}\n) ORDER BY number",
            [fingerprint],
        ).fetchnumpy()
    except duckdb.IOException:
        raise
    except duckdb.InterruptException:
        raise UsageError(f"--where {where!r}: it took over {SECONDS:.0f} s; ask something simpler") from None
    except duckdb.Error as error:
        raise UsageError(f"--where {where!r}: {fault(str(error), [*COLUMNS, *keys])}") from error
    finally:
        alarm.cancel()
    return np.asarray(rows["number"], np.int64)


def check(connection: duckdb.DuckDBPyConnection, where: str) -> set[str]:
    """Refuses whatever is not one expression of one SELECT: statements, subqueries, ORDER BY, parameters.

    Returns the names in it, in lower case.
    """
    try:
        where.encode()
    except UnicodeEncodeError:
        raise UsageError(f"--where {where!r}: it is no text; write it in UTF-8") from None
    if len(where) > LONGEST:
        raise UsageError(f"--where has {len(where):,} characters; {LONGEST:,} are allowed")
    row = database.first(connection, "SELECT json_serialize_sql(?)", [f"SELECT 1 FROM rows WHERE\n{where}\n"])
    parsed = json.loads(row[0])
    if parsed["error"]:
        raise UsageError(f"--where {where!r}: {unreadable(parsed['error_message'], where)}")
    nodes = [statement["node"] for statement in parsed["statements"]]
    if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE" or any(nodes[0].get(part) for part in _BEYOND_WHERE):
        raise UsageError(f"--where {where!r}: it is more than one expression; write one condition, joined by and, or")
    condition = nodes[0]["where_clause"]
    if condition is None or nodes[0]["from_table"]["type"] != "BASE_TABLE":
        raise UsageError(f"--where {where!r}: it is no condition; {EXAMPLE}")
    if condition.get("class") == "COLUMN_REF":
        raise UsageError(f"--where {where!r}: it names a column and compares it with nothing; {EXAMPLE}")
    if condition.get("class") == "CONSTANT" and condition.get("value", {}).get("type", {}).get("id") != "BOOLEAN":
        raise UsageError(f"--where {where!r}: it is a value and compares nothing; {EXAMPLE}")
    for part in _parts(condition):
        kind = part.get("class", "CONSTANT")
        if kind not in _CLASSES:
            raise UsageError(f"--where {where!r}: a {kind.lower()} is not allowed; compare columns with values")
        name = part.get("function_name", "").removesuffix("_star")
        if kind == "FUNCTION" and name.lower() not in _FUNCTIONS:
            raise UsageError(f"--where {where!r}: {name}() is not a function that it may call")
        if kind == "TYPE" and part["type_name"].lower() not in _TYPES:
            raise UsageError(f"--where {where!r}: {part['type_name']} is not a type that it may cast to")
    _check_size(where, condition)
    return {name.lower() for part in _parts(condition) for name in part.get("column_names") or ()}


def _check_size(where: str, condition: Any) -> None:
    """Refuses what makes results far larger than the cells that they are of."""
    joined = 0
    for part in _parts(condition):
        name = part.get("function_name", "").lower()
        kinds = [argument["expression"].get("class") for argument in part.get("arguments", ())]
        joined += name == "||"
        if name in ("list_value", "row"):
            joined += sum(kind != "CONSTANT" for kind in kinds)
        if name in _OF_JSON and "FUNCTION" in kinds[1:]:
            raise UsageError(f"--where {where!r}: give {name} one path at a time")
    if joined > _JOINED:
        raise UsageError(f"--where {where!r}: it joins {joined} values; {_JOINED} are allowed")


def _parts(tree: Any) -> Any:
    """Every dict in a parsed expression."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _parts(child)


def has_filter(selection: Selection) -> bool:
    """Whether some rows may not pass."""
    return selection.where is not None or selection.not_run is not None


def check_selection(selection: Selection) -> None:
    """Refuses limits that no neighbour could keep."""
    if selection.within is not None and not selection.within >= 0:
        raise UsageError(f"--within {selection.within}: choose a distance of at least 0")
    if selection.per_run is not None and selection.per_run < 1:
        raise UsageError(f"--per-run {selection.per_run}: choose at least 1")
