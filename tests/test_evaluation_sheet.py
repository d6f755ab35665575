"""The sheet of worst cases: a row for each, whatever the pictures' shapes and names."""

import numpy as np

from engine.evaluation.worst_cases import WorstCaseRow, draw


def flat(value: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_pictures_of_any_shape_are_on_it_and_missing_ones_are_not():
    rows = [
        WorstCaseRow((flat(60, 5, 500), flat(61, 500, 5), flat(62, 1, 1)), ("a", "b", "c")),
        WorstCaseRow(
            (flat(63, 100, 100), None, flat(64, 20, 20)), ("flip", "nothing", "0.1 " + "x" * 300)
        ),
    ]
    sheet = np.asarray(draw("名前: the worst", rows))
    for value in range(60, 65):
        assert (sheet == value).all(-1).any(), value
    none = np.asarray(draw("one", rows[:1]))
    assert none.shape[1] == sheet.shape[1]
    assert none.shape[0] < sheet.shape[0]
