"""Random texts made fit for a terminal; apart, since the fast tests need not import hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsearch.text_table import printable

pytestmark = pytest.mark.slow


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_printable_text_is_one_line_and_loses_nothing_printable(text: str):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert [letter for letter in text if letter.isprintable()] == [
        letter for letter in text if letter.isprintable() and letter in shown
    ]
