"""The chart of a benchmark."""

from __future__ import annotations

import re
import struct
import sys
import xml.etree.ElementTree as ET

import pytest

from marcorank import InvalidInputError, MissingExtraError, bench
from marcorank.bench.records import Results, Row, Settings, check_chart_path


@pytest.fixture
def results():
    """Two models, with names that matplotlib could read as formulas."""
    speeds = {("a$x$", "langchain", ""): 3.0, ("a$x$", "marcorank", "onnx"): 1.0, ("b_{1}", "marcorank", "torch"): 0.5}
    rows = [
        Row(*key, rounds_s=[[seconds]], cold_start_s=[1.0], order=[0], logits=[0.0]) for key, seconds in speeds.items()
    ]
    rows.append(Row("b_{1}", "marcorank", "openvino", "int8", reason="not installed"))
    return Results(
        Settings(models=("a$x$", "b_{1}")),
        machine={"processor": "Chip $1$", "usable_cores": 1},
        workload={"passages": ["text"], "lengths": [8]},
        rows=rows,
        limits={},
        not_installed=[],
        date="2026-01-01",
    )


def test_png(results, tmp_path):
    """The file is a PNG of a size that fits a page."""
    results.write_chart(tmp_path / "speed.png")
    content = (tmp_path / "speed.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 600 < width < 3000
    assert 200 < height < 3000


def test_svg_contains_text(results, tmp_path):
    """Measured contestants, models and speeds are text in the file; a contestant that was not measured is left out."""
    results.write_chart(tmp_path / "speed.SVG")
    root = ET.parse(tmp_path / "speed.SVG").getroot()  # noqa: S314 -- written here
    text = "\n".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for expected in ("LangChain", "marcorank onnx fp32", "marcorank torch fp32", "a$x$", "b_{1}", "Chip $1$, 1 core"):
        assert expected in text
    assert re.findall(r"([\d.]+)x, ([\d,]+) ms", text) == [("3.0", "1,000"), ("1.0", "3,000"), ("6.0", "500")]
    assert "openvino" not in text


def test_a_chart_replaces_the_old_one(results, tmp_path):
    """An SVG gets its name when it is complete; nothing is written over the file that has it."""
    chart = tmp_path / "speed.svg"
    chart.write_text("old")
    (tmp_path / "kept").hardlink_to(chart)
    results.write_chart(chart)
    assert chart.read_text("utf-8").startswith("<svg")
    assert (tmp_path / "kept").read_text() == "old"


def test_a_result_shows_itself_in_a_notebook(results):
    """A chart of the speeds, and a table of the measured contestants with escaped names."""
    figure = results.plot()
    assert "Speed (LangChain = 1)" in figure.to_svg()
    results.rows[0].model = results.rows[1].model = "<b>"
    table = results._repr_html_()
    assert "&lt;b&gt;" in table
    assert table.count("<tr>") == 1 + 3
    assert "3.0x" in table
    assert "Results" in bench.__all__
    assert bench.Results is Results
    with pytest.raises(AttributeError, match="no attribute 'results'"):
        _ = bench.results


def test_a_missing_matplotlib_is_named_with_the_extra_of_the_command(monkeypatch):
    """`bench` has an extra of its own."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "marcorank\[bench\]"'):
        check_chart_path("speed.svg")


def test_empty_chart(results, tmp_path):
    """A run in which every contestant failed still writes the file."""
    results.rows = results.rows[-1:]
    results.write_chart(tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"),
    [("speed.pdf", r"'speed.pdf'; expected a name that ends in .png or .svg"), ("no/speed.png", "cannot be written")],
)
def test_invalid_chart_path(results, name, message, tmp_path, monkeypatch):
    """The message names the path and what is expected."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=message):
        results.write_chart(name)
