"""Figures of one run."""

import io

import numpy as np
import pytest

from plif_lightning.plot.curves import confusion_matrix, learning_curve, tau_curve

ROWS = [
    {"epoch": 0, "step": 76, "train/acc": 0.4, "val/acc": 0.5, "tau/conv1": 2.0, "tau/fc1": 2.1},
    {"epoch": 1, "step": 153, "train/acc": 0.7, "val/acc": 0.75, "tau/conv1": 1.9, "tau/fc1": 2.3},
]


@pytest.mark.parametrize("draw", [learning_curve, tau_curve])
@pytest.mark.parametrize("rows", [[], ROWS])
def test_curves_are_drawn_even_from_nothing(draw, rows):
    file = io.BytesIO()
    draw(rows, "title").savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_accuracies_are_in_percent_over_epochs_counted_from_1():
    accuracy, loss = learning_curve(ROWS, "title").axes
    assert {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines} == {
        "training": [[1, 40], [2, 70]],
        "validation": [[1, 50], [2, 75]],
    }
    assert len(loss.lines) == 0


def test_there_is_a_line_for_tau_of_each_layer():
    rows = [*ROWS, {"epoch": 2, "step": 230, "train/acc": 0.8}]
    (ax,) = tau_curve(rows, "title").axes
    assert {line.get_label(): line.get_ydata().tolist() for line in ax.lines} == {
        "conv1": [2.0, 1.9],
        "fc1": [2.1, 2.3],
    }


def test_a_confusion_matrix_is_shaded_by_the_share_of_the_true_class():
    figure = confusion_matrix([[3, 1], [0, 5]], ["a", "b"])
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in ax.texts] == ["3", "1", "5"]
    assert ax.get_title(loc="left") == "accuracy 88.89 %: 8 of 9"
