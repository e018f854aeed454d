import pytest

from plif_lightning.analysis.curves import plot_learning_curve, plot_tau_curve

ROWS = [
    {"epoch": 0, "step": 76, "train/acc": 0.4, "val/acc": 0.5, "tau/conv1": 2.0, "tau/fc1": 2.1},
    {"epoch": 1, "step": 153, "train/acc": 0.7, "val/acc": 0.75, "tau/conv1": 1.9, "tau/fc1": 2.3},
]


@pytest.mark.parametrize("plot", [plot_learning_curve, plot_tau_curve])
@pytest.mark.parametrize("rows", [[], ROWS])
def test_curves_are_drawn_even_from_nothing(plot, rows, tmp_path):
    path = tmp_path / "curve.png"
    plot(rows, path, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
