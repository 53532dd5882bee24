"""Whatever DuckDB says of a condition, a user reads a sentence of ours."""

from __future__ import annotations

import duckdb
import pytest

from weightsearch.index.filter_faults import fault, unreadable

DATABASES = (
    "cast",
    "Binder",
    "Conversion",
    "INTEGER_LITERAL",
    "VARCHAR",
    "DOUBLE ->",
    "WHERE",
    "Referenced",
    "type(s)",
)
CONDITIONS = [
    "epoch::DATE > '2020-01-01'", "epoch::BLOB = 'x'", "regexp_matches(run, '[')", "run ~ '*'", "length(epoch) > 3",
    "epoch + run > 3", "date_trunc('foo', now()) is null", "epoch::NOSUCH > 1", "[1, 2] = epoch", "run->>'a' = 1",
    "run::TIMESTAMP > now()", "99999999999999999999999::BIGINT > epoch", "run collate nosuch = 'a'", "x.y = 1",
    "run like '%' escape 'ab'", "substr(run) = 'a'", "epoch << 70 > 1", "run between 1 and 2", "nosuch(epoch) > 1",
    "epoch.field = 1", "epoch[1] = 2", "'a' = 'b'::INT", "not run", "run and run", "case when run then 1 end",
]  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_no_word_of_the_databases_reaches_a_user(condition: str):
    connection = duckdb.connect()
    connection.execute("CREATE TABLE rows AS SELECT 1.5::DOUBLE AS epoch, 'usps-v1/0' AS run")
    with pytest.raises(duckdb.Error) as caught:
        connection.execute(f"SELECT * FROM rows WHERE ({condition})").fetchall()
    said = fault(str(caught.value), ["run", "epoch"])
    assert not [word for word in DATABASES if word in said], said
    assert said != str(caught.value).splitlines()[0]


def test_what_is_not_foreseen_has_a_sentence_too():
    assert fault("Nonsense Error: the frobnicator overflew", ["run"]).startswith("it cannot be computed")
    assert fault("", ["run"]).startswith("it cannot be computed")
    assert unreadable("Parser Error: gibberish", "a b").startswith("it cannot be read")
