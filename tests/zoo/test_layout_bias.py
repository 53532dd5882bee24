"""A layout of the Small CNN Zoo whose bias does not fit its kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightsearch.errors import WeightsearchError
from weightsearch.zoo.small_cnn_zoo import read_layout


def test_a_bias_of_another_length_is_refused_in_a_line(tmp_path: Path):
    path = tmp_path / "layout.csv"
    path.write_text('varname,start_idx,end_idx,shape\nd/bias,0,0,0\nd/kernel:,2,8,"3 2"\n')
    with pytest.raises(WeightsearchError, match="the bias of d has 0 values for 2 rows"):
        read_layout(path)
