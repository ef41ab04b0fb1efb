"""The page with plots: whole in one file, and nothing in it is lost by thinning."""

import json
import re

import numpy as np
import pytest

from tests.messages import refuses, says
from tests.written_runs import compared, losses, write_run
from trainer.errors import TrainerError
from trainer.plots import COLOURS, MAX_POINTS, extremes, means
from trainer.tools.compare.page import write_page


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    evaluations = {100: {"val_loss": 3.5, "lines/acc_norm": 0.3}, 200: {"val_loss": 3.3, "lines/acc_norm": 0.5}}
    a = write_run(tmp_path, "a", losses(), evaluations=evaluations)
    return compared(a, write_run(tmp_path, "<b>", losses() + 0.2, evaluations=evaluations, precision="fp8"))


def figures(page: str) -> list[tuple[list[dict], dict]]:
    """(lines, layout) of every plot of a page."""
    found, decoder = [], json.JSONDecoder()
    for call in re.finditer(r'Plotly\.newPlot\(\s*"[\w-]+",\s*', page):
        lines, end = decoder.raw_decode(page, call.end())
        layout, _ = decoder.raw_decode(page, page.index("{", end))
        found.append((lines, layout))
    return found


def test_the_page_has_every_plot_with_units_and_one_colour_a_run(comparison, tmp_path):
    page = write_page(comparison, tmp_path / "page.html").read_text()
    plots = {layout["title"]["text"]: (lines, layout) for lines, layout in figures(page)}
    titles = [re.sub("<.*?>", "", title) for title in plots]
    assert titles == [
        "Training loss by tokens",
        "Gap to a, with its 95 % band",
        "Training loss by time",
        "Validation loss",
        "Throughput",
        "Gradient norm before clipping",
        "Learning rate",
        "lines/acc norm",
    ]
    for lines, layout in plots.values():
        assert layout["xaxis"]["title"]["text"]
        assert layout["yaxis"]["title"]["text"]
        for line in lines:
            colour = line.get("fillcolor") or line["line"]["color"]
            assert colour == COLOURS[0 if line.get("name") == "a" else 1]


def test_the_page_needs_no_network_and_names_are_text(comparison, tmp_path):
    page = write_page(comparison, tmp_path / "page.html").read_text()
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    assert "<b>" not in re.sub(r"<b>[^<]*</b>", "", page.split("</script>")[-1])
    says(page, "&lt;b&gt;", "worse", "0.2000")


def test_a_folder_gets_a_page_named_after_the_runs(comparison, tmp_path):
    assert write_page(comparison, tmp_path) == tmp_path / "compare-a-<b>.html"


def test_a_place_that_cannot_be_written_is_refused(comparison, tmp_path):
    with refuses(TrainerError, "absent/page.html", "--html"):
        write_page(comparison, tmp_path / "absent" / "page.html")


def test_what_is_not_known_has_no_plot(tmp_path):
    a, b = (write_run(tmp_path, name, losses(), step_seconds=float("nan")) for name in "ab")
    page = write_page(compared(a, b), tmp_path / "page.html").read_text()
    assert "Training loss by tokens" in page
    assert "Training loss by time" not in page
    assert "Validation loss" not in page


def test_thinning_keeps_every_spike_and_the_mean():
    places, values = np.arange(16_384.0), np.zeros(16_384)
    values[12_345] = 9.0
    x, y = extremes(places, values, values)
    assert len(x) <= MAX_POINTS
    assert y.max() == 9.0
    assert abs(x[int(np.argmax(y))] - 12_345) < 16_384 / MAX_POINTS * 2
    x, y = means(places, values, np.ones(16_384), 64)
    assert len(x) == 64
    assert y.sum() == pytest.approx(9.0 / 256)


def test_a_few_points_are_drawn_as_they_are():
    places, values = np.array([1.0, np.nan, 3.0]), np.array([5.0, np.nan, 4.0])
    assert [part.tolist() for part in extremes(places, values, values)] == [[1.0, 3.0], [5.0, 4.0]]
    assert [part.tolist() for part in means(places, values, np.array([1.0, 0.0, 1.0]), 64)] == [[1.0, 3.0], [5.0, 4.0]]
