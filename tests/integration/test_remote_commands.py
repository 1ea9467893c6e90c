"""The command line with a server instead of a model."""

from __future__ import annotations

import json

import pytest

from marcorank.cli import main
from remote_server import remote_server


@pytest.fixture(params=["tei", "cohere"])
def server(request):
    with remote_server(request.param) as running:
        yield running


@pytest.fixture
def passages(tmp_path):
    file = tmp_path / "passages.txt"
    file.write_text("a list is mutable\nopen a file with open\n", encoding="utf-8")
    return str(file)


def test_rerank_shows_the_scores_of_a_server(server, passages, capsys):
    """Also if it returns probabilities instead of logits."""
    command = ["rerank", "open a file", passages, "--model", f"{server.url}#served", "--activation", "sigmoid"]
    assert main([*command, "--format", "table"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith(f"ranked by {server.url}#served")
    assert shown[2].split()[:4] == ["1", "1", "0.9933", "-" if server.dialect == "cohere" else "5.0000"]
    assert main([*command, "--format", "jsonl"]) == 0
    best = json.loads(capsys.readouterr().out.splitlines()[0])
    assert best["score"] == pytest.approx(0.9933, abs=1e-4)
    assert ("logit" in best) == (server.dialect == "tei")


def test_rerank_limits_the_passages_of_a_request(server, passages):
    """With the option of the same name."""
    command = ["rerank", "open a file", passages, "--model", f"{server.url}#served", "--max-passages-per-request", "1"]
    assert main(command) == 0
    assert len(server.requests) == 2


def test_eval_measures_a_server(server, tmp_path, capsys):
    """The address is its name, and each pair is scored once."""
    rows = [
        {"query": f"open file {number}", "passages": ["a list", f"open file {number}", "close"], "relevant": [1]}
        for number in range(6)
    ]
    collection = tmp_path / "judged.jsonl"
    collection.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["eval", str(collection), "--model", f"{server.url}#served", "--output", str(tmp_path / "report")]
    assert main(command) == 0
    assert "nDCG@10       0.6309    0.6309    1.0000" in capsys.readouterr().out
    asked = len(server.requests)
    assert main(command) == 0
    assert len(server.requests) == asked
