"""A user's `--where`: one expression in DuckDB's SQL over the rows' columns, recipe keys and the user's own columns."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import numpy as np

from weightsearch.errors import UsageError
from weightsearch.index import database
from weightsearch.index.database import COLUMNS

# Parts of a parsed SELECT that `WHERE <expression>` alone leaves empty.
_BEYOND_WHERE = ("modifiers", "group_expressions", "group_sets", "having", "sample", "qualify")


def passing(connection: duckdb.DuckDBPyConnection, fingerprint: str, where: str) -> np.ndarray:
    """Numbers `(m,)`, ascending, of the architecture's rows for which `where` holds.

    Raises UsageError, in one line, for what is not one expression, and for unknown columns with the known ones.
    """
    check(connection, where)
    types = database.key_types(connection)
    keys = list({name.lower(): name for name in types}.values())  # SQL's names have no case
    selected = [*COLUMNS, *(f'{database.json_sql(name, types[name])} AS "{name}"' for name in keys)]
    try:
        found = connection.execute(
            f"SELECT number FROM (SELECT {', '.join(selected)} FROM {database.rows_sql(connection)} "
            f"WHERE architecture = ?) WHERE (\n{where}\n) ORDER BY number",
            [fingerprint],
        ).fetchnumpy()
    except duckdb.IOException:
        raise
    except duckdb.Error as error:
        fault = str(error).splitlines()[0].partition(": ")[2]  # behind "Binder Error: "
        raise UsageError(f"--where {where!r}: {fault} (columns: {', '.join([*COLUMNS, *keys])})") from error
    return np.asarray(found["number"], np.int64)


def check(connection: duckdb.DuckDBPyConnection, where: str) -> None:
    """Refuses whatever is not one expression of one SELECT: statements, subqueries, ORDER BY, parameters."""
    row = database.first(connection, "SELECT json_serialize_sql(?)", [f"SELECT 1 FROM rows WHERE\n{where}\n"])
    parsed = json.loads(row[0])
    if parsed["error"]:
        fault = parsed["error_message"].splitlines()[0]
        if "Only SELECT" in fault:
            fault = "it is more than one expression"
        raise UsageError(f'--where {where!r}: {fault}; write one condition such as "test_accuracy > 0.9"')
    nodes = [statement["node"] for statement in parsed["statements"]]
    if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE" or any(nodes[0].get(part) for part in _BEYOND_WHERE):
        raise UsageError(f"--where {where!r}: it is more than one expression; write one condition, joined by and, or")
    condition = nodes[0]["where_clause"]
    if condition is None or nodes[0]["from_table"]["type"] != "BASE_TABLE":
        raise UsageError(f'--where {where!r}: it is no condition; write one such as "test_accuracy > 0.9"')
    for part in _parts(condition):
        if part.get("class") in ("SUBQUERY", "PARAMETER", "WINDOW"):
            kind = part["class"].lower()
            raise UsageError(f"--where {where!r}: a {kind} is not allowed; compare columns with values")


def _parts(tree: Any) -> Any:
    """Every dict in a parsed expression."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _parts(child)
