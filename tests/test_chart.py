"""Charts: round ticks inside their range, and lines where the values say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffseg_cli.results.chart import COLOURS, HEIGHT, WIDTH, Chart, draw_charts, tick_values


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_few_even_and_inside(low: float, span: float) -> None:
    ticks = tick_values(low, low + span)
    assert 2 <= len(ticks) <= 7
    assert low - 1e-6 * span <= ticks[0] and ticks[-1] <= low + span + 1e-6 * span
    gaps = np.diff(ticks)
    assert np.allclose(gaps, gaps[0], rtol=1e-3)


def test_a_rising_line_rises_and_charts_stand_side_by_side() -> None:
    rising = Chart("Up", "step", {"one": [(0, 0.1), (5, 0.4), (10, 0.9)], "gap": [(0, float("nan"))]})
    page = draw_charts([rising, Chart("Nothing yet", "step", {})])
    assert page.shape == (HEIGHT, 2 * WIDTH, 3)
    rows, columns = (page == COLOURS[0]).all(-1).nonzero()
    line = rows > 60  # below the legend
    left, right = rows[line][columns[line].argmin()], rows[line][columns[line].argmax()]
    assert left > right + 200
    assert (page[:, WIDTH:] == COLOURS[0]).all(-1).sum() == 0
