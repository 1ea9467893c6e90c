"""Every example runs as its reader would run it, and prints what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file
from sentence_transformers import CrossEncoder

from compressed_files import write_rows
from marcorank import Reranker
from marcorank._models.export import export_onnx
from openai_server import ANSWER, openai_server
from patience import PATIENCE_S
from random_models import bert, bi_encoder, masked_language_model

FOLDER = Path(__file__).parents[2] / "examples"
# What has no main part is imported by the others.
EXAMPLES = sorted(file.name for file in FOLDER.glob("*.py") if '__name__ == "__main__"' in file.read_text("utf-8"))
# Run below with what they need.
NEED_ARGUMENTS = ("rag_llamaindex.py", "train_reranker.py")
PROGRESS = re.compile(r"\d+%\|")
# An example about truncation may say that it truncates.
TOLD = {"long_documents.py": "the rest of it is not scored"}
MOVE = re.compile(r"^ *(\d+) → *(\d+) +(=|[↑↓]\d+) +(-?[\d.]+) +(-?[\d.]+)  \[(.+?)\] (.*)$", re.MULTILINE)
RULE = "-" * 60
EXTRACTIVE = "(Extractive: the best sentence of the passages above the line."
QUESTION = "How hot is green tea brewed?"
ANSWER_IN_PDF = "Green tea is brewed at 80 degrees."
SOURCES = {"coffee.txt", "milk.md", str(Path("more", "bread.txt")), str(Path("more", "tea.pdf"))}


class Run(NamedTuple):
    """Output of an example: what it prints, and what it says on stderr that is no progress."""

    text: str
    complaints: list[str]


def run(example: str, *arguments: object, folder: Path) -> Run:
    """Run an example in a folder, as a reader does."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(FOLDER / example), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        # Windows would print with an older encoding; a proxy must not stand before the loopback server.
        env={**os.environ, "PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1"},
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in re.split(r"[\r\n]+", done.stderr)]
    return Run(done.stdout, [line for line in lines if line and not PROGRESS.search(line)])


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """The folder of the default runs; the store of the LangChain example stays there."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="session")
def default_run(workplace):
    """Run an example without arguments, once for all tests."""
    return cache(lambda example: run(example, folder=workplace))


def moves(text):
    """Rows of the table of moves: first rank, new rank, arrow, first score, new score, source, preview."""
    return [
        (int(first), int(new), arrow, float(first_score), float(score), source, preview)
        for first, new, arrow, first_score, score, source, preview in MOVE.findall(text)
    ]


def check_moves(text, count, top_n=3):
    """Check that a table is complete, sorted, and says how far each passage moved."""
    rows = moves(text)
    assert sorted(row[0] for row in rows) == list(range(1, count + 1))
    assert [row[1] for row in rows] == list(range(1, count + 1))
    for first, new, arrow, *_ in rows:
        assert arrow == ("=" if first == new else f"{'↑' if first > new else '↓'}{abs(first - new)}")
    first_scores = [row[3] for row in sorted(rows)]
    assert first_scores == sorted(first_scores, reverse=True)
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), reverse=True)
    if count > top_n:
        assert len(moves(text.split(RULE)[0])) == top_n
    sources = ", ".join(f"[{place}] {row[5]}" for place, row in enumerate(rows[:top_n], 1))
    assert f"Sources: {sources}\n" in text
    return rows


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name not in NEED_ARGUMENTS])
def test_an_example_runs_without_arguments(default_run, example):
    """It needs no argument and no network, prints something, and says nothing on stderr but progress."""
    output = default_run(example)
    assert output.text.strip()
    assert all(TOLD.get(example, "\n") in line for line in output.complaints), output.complaints


def test_search_results_are_reranked_with_their_records(default_run):
    """Every result appears once with its old place, its own title and its own url, best score first."""
    records = json.loads((FOLDER / "search_results.json").read_text("utf-8"))["results"]
    rows = re.findall(
        r"^ *(\d+) +(\d+) +(-?[\d.]+)  (.+)\n +(\S+)$", default_run("rerank_search_results.py").text, re.MULTILINE
    )
    assert [int(row[0]) for row in rows] == list(range(1, len(records) + 1))
    assert sorted(int(row[1]) for row in rows) == list(range(1, len(records) + 1))
    assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)
    for _, old, _, title, url in rows:
        assert (title, url) == (records[int(old) - 1]["title"], records[int(old) - 1]["url"])


def test_search_results_of_ones_own(tmp_path):
    """`--results` takes a file of the reader's, the query its place, and `--top-n` cuts the list."""
    results = [
        {"title": "Roasting", "url": "https://example.org/coffee", "snippet": "Coffee is roasted.", "id": 7},
        {"title": "Green tea", "url": "https://example.org/tea", "snippet": "Green tea is brewed at 80 degrees."},
    ]
    (tmp_path / "own.json").write_text(json.dumps({"results": results}), encoding="utf-8")
    arguments = ["how hot is green tea brewed", "--results", "own.json", "--top-n", 1]
    text = run("rerank_search_results.py", *arguments, folder=tmp_path).text
    assert "https://example.org/tea" in text
    assert "https://example.org/coffee" not in text


def test_search_prints_lines_as_they_stand_in_the_file(tmp_path):
    """Each printed line has the number and the text that it has in the reader's file."""
    paragraphs = [f"Paragraph {number} is about nothing much.\n" * 15 for number in range(8)]
    paragraphs[5] = "Green tea is brewed at 80 degrees.\n" * 15
    file = tmp_path / "own.txt"
    file.write_text("\n\n" + "\n".join(paragraphs), encoding="utf-8")
    arguments = ["How hot is green tea brewed?", "--file", file, "--top-k", 4, "--top-n", 2]
    text = run("semantic_search.py", *arguments, folder=tmp_path).text
    lines = file.read_text("utf-8").splitlines()
    printed = re.findall(r"^ {2,6}(\d+)  (.*)$", text, re.MULTILINE)
    assert len(printed) >= 20
    for number, line in printed:
        assert line == lines[int(number) - 1]
    for first, last in re.findall(r"lines (\d+)-(\d+), score", text):
        assert {first, last} <= {number for number, _ in printed}
    assert "Green tea" in printed[0][1]
    assert ", 4 candidates, the best 2:" in text


def test_search_says_what_the_first_stage_thought(default_run):
    """By default three passages are shown, with both places."""
    heads = re.findall(
        r"^(\d)\. lines \d+-\d+, score (\S+), first stage: place (\d+)$",
        default_run("semantic_search.py").text,
        re.MULTILINE,
    )
    assert [head[0] for head in heads] == ["1", "2", "3"]
    assert all(1 <= int(head[2]) <= 20 for head in heads)


def test_a_question_without_answer_gets_none(default_run):
    """Of the default questions some are answered from their passage, and the one about nothing there is not."""
    text = default_run("question_answering.py").text
    assert "The Danube rises in the Black Forest in Germany" in text
    assert "with more than a million people" in text
    assert re.search(
        r"How do I train a neural network\?\n  No answer found: none of \d+ sentences reaches 0\.5\.", text
    )


def test_the_threshold_decides_about_answers(tmp_path):
    """With 0 the same question has an answer with a score between 0 and 1; with 1 no question has."""
    (tmp_path / "own.txt").write_text("Tea is hot. Ice is cold.\n\nCats purr.\n", encoding="utf-8")
    arguments = ["Which animal purrs?", "--passages", "own.txt", "--threshold"]
    answered = run("question_answering.py", *arguments, 0, folder=tmp_path).text
    assert re.search(r"Which animal purrs\?\n  Cats purr\.\n  \(score 0\.\d{3}, passage 2\)", answered)
    refused = run("question_answering.py", *arguments, 1, folder=tmp_path).text
    assert "No answer found: none of 3 sentences reaches 1.0." in refused


def test_windows_find_what_truncation_misses(tmp_path):
    """An answer at the end of a long document ranks it first only with windows, and the quoted span holds it."""
    filler = "The weather was fine and nobody had anything to do with the matter.\n\n" * 60
    answer = "Green tea is brewed at 80 degrees."
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "late.md").write_text(filler + answer + "\n", encoding="utf-8")
    (docs / "short.txt").write_text("Tea is a drink.\n", encoding="utf-8")
    text = run("long_documents.py", "How hot is green tea brewed?", "--docs", docs, folder=tmp_path).text
    assert re.search(r"^late\.md +\d+ +2 +\S+ +1 +\S+$", text, re.MULTILINE)
    assert "Truncation read only the beginning of 1 of 2." in text
    start, end = map(int, re.search(r"Best window: characters (\d+) to (\d+) of late\.md", text).groups())
    assert answer in (docs / "late.md").read_text("utf-8")[start:end]
    assert f"    {answer}" in text


def test_long_documents_are_long(default_run):
    """In the default run every document is longer than what the model reads, for every question."""
    text = default_run("long_documents.py").text
    assert text.count("Truncation read only the beginning of 6 of 6.") == text.count("Best window: ") == 3


def test_tuning_prints_what_each_depth_gains_and_what_is_recommended(default_run):
    """Every depth with its time, and for each option whether to turn it on."""
    text = default_run("tune_top_k.py").text
    rows = re.findall(r"^ +(\d+)  nDCG@3 +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["5", "10", "20"]
    for _, first_stage, identity, reranked, best in rows:
        assert first_stage == identity
        assert 0.2 < float(reranked) < float(best) <= 1
    assert re.search(r"^blend: (0\.\d is recommended|leave it off); ", text, re.MULTILINE)
    assert re.search(r"^top_k: (\d+ is recommended|leave it off); ", text, re.MULTILINE)


def test_langchain_shows_both_ranks_and_an_answer(default_run):
    """The default run embeds the whole reference, and shows 20 moves, a sentence as the answer, and its sources."""
    text = default_run("rag_langchain.py").text
    chunks, new, removed = map(int, re.match(r"(\d+) chunks: (\d+) to embed, (\d+) removed\n", text).groups())
    assert (chunks, removed) == (new, 0)
    assert chunks > 200
    check_moves(text, 20)
    assert re.search(r"^Answer: \S+ .*\n\(Extractive: the best sentence", text, re.MULTILINE)


def test_langchain_asks_the_llm_with_the_best_three(default_run, workplace):
    """A second run embeds nothing; the prompt holds the three best passages and no score; the answer is printed."""
    default_run("rag_langchain.py")
    with openai_server() as server:
        arguments = ["What does a class decorator do?", "--llm", "some-model", "--base-url", server.base_url]
        text = run("rag_langchain.py", *arguments, folder=workplace).text
    assert re.match(r"\d+ chunks: 0 to embed, 0 removed\n", text)
    check_prompt(server, "What does a class decorator do?", check_moves(text, 20), mark="[{}] ")
    assert f"\nAnswer: {ANSWER}\nSources: [1] " in text
    assert EXTRACTIVE not in text


def test_documents_of_ones_own(default_run, workplace, documents):
    """A folder's Markdown, text and PDF are read, an empty file is not, and other documents in the store stay."""
    default_run("rag_langchain.py")
    (documents / "empty.txt").touch()
    text = run("rag_langchain.py", QUESTION, "--docs", documents, folder=workplace).text
    assert re.match(r"(\d+) chunks: \1 to embed, 0 removed\n", text)
    rows = check_moves(text, len(moves(text)))
    assert {row[5] for row in rows} == SOURCES
    assert f"Answer: {ANSWER_IN_PDF}\n{EXTRACTIVE}" in text


def test_llamaindex_embeds_only_what_has_changed(documents, tmp_path):
    """After a change in one file only its chunk is embedded and the old one goes; the prompt holds the best three."""
    (documents / "empty.txt").touch()
    first = run("rag_llamaindex.py", QUESTION, "--docs", documents, folder=tmp_path)
    assert first.complaints == []
    chunks, new = map(int, re.match(r"(\d+) chunks: (\d+) to embed, 0 removed\n", first.text).groups())
    assert chunks == new == len(SOURCES)
    assert {row[5] for row in check_moves(first.text, chunks)} == SOURCES
    assert f"Answer: {ANSWER_IN_PDF}\n{EXTRACTIVE}" in first.text

    (documents / "coffee.txt").write_text("Coffee is now roasted at 210 degrees.\n", encoding="utf-8")
    with openai_server() as server:
        arguments = [QUESTION, "--docs", documents, "--llm", "some-model", "--base-url", server.base_url]
        second = run("rag_llamaindex.py", *arguments, folder=tmp_path)
    assert second.text.startswith(f"{chunks} chunks: 1 to embed, 1 removed\n")
    assert "at 210" in second.text
    assert "at 200" not in second.text
    check_prompt(server, QUESTION, check_moves(second.text, chunks))
    assert f"\nAnswer: {ANSWER}\nSources: [1] " in second.text
    assert EXTRACTIVE not in second.text


@pytest.fixture
def documents(tmp_path):
    """A folder with a Markdown file, two texts and a PDF; a file that is none of them is left alone."""
    folder = tmp_path / "documents"
    (folder / "more").mkdir(parents=True)
    (folder / "coffee.txt").write_text("Coffee is roasted at 200 degrees.\n", encoding="utf-8")
    (folder / "milk.md").write_text("# Milk\n\nMilk is kept in the fridge.\n", encoding="utf-8")
    (folder / "more" / "bread.txt").write_text("Bread is baked in an oven of stone.\n", encoding="utf-8")
    (folder / "more" / "tea.pdf").write_bytes(pdf(ANSWER_IN_PDF))
    (folder / "photo.png").write_bytes(b"\x89PNG")
    return folder


def pdf(line: str) -> bytes:
    """Return a PDF of one page with one line."""
    font = b"<< /Font << /F1 5 0 R >> >>"
    content = f"BT /F1 12 Tf 72 720 Td ({line}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources %s >>" % font,
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return (
        body
        + head
        + table
        + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (
            len(objects) + 1,
            len(body),
        )
    )


def check_prompt(server, question, rows, mark=""):
    """Check that one chat was asked for, with the question, the three best passages in their order, and no score."""
    [(path, body)] = server.requests
    assert (path, body["model"]) == ("/v1/chat/completions", "some-model")
    [prompt] = server.prompts
    assert question in prompt
    flat = " ".join(prompt.split())
    places = [flat.find(mark.format(place) + row[6].removesuffix("…")) for place, row in enumerate(rows, 1)]
    assert min(places[:3]) >= 0
    assert places[:3] == sorted(places[:3])
    assert places[3] == -1
    assert "retrieval_score" not in prompt
    assert "relevance_score" not in prompt


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The command that trains on a small collection with three random teachers, and its folder."""
    folder = tmp_path_factory.mktemp("training")
    collection = folder / "my-collection"
    rows = [{"id": f"p{number}", "text": f"Passage {number} is about the number {number}."} for number in range(60)]
    asked = [
        {"query": f"What is about the number {number}?", "pos": [f"p{number}"], "neg": [f"p{(number + 1) % 60}"]}
        for number in range(60)
    ]
    write_rows(collection / "corpus.jsonl.gz", rows)
    write_rows(collection / "train.jsonl.gz", asked)
    encoder, splade = bi_encoder(folder / "encoder"), masked_language_model(folder / "splade")
    teachers = ("--bi-encoder", encoder, "--sparse-encoder", splade, "--reranker", bert(folder / "reranker"))
    options = ("--start", encoder, *teachers, "--steps", 10, "--save-steps", 2, "--learning-rate", 1e-3)
    return ("train_reranker.py", collection, *options), folder


@pytest.fixture(scope="module")
def trained(training):
    """What a training prints that nothing interrupts, and the folder of its model."""
    command, folder = training
    return run(*command, "--output", "mine", folder=folder).text, folder / "mine"


def test_a_trained_reranker_is_one_that_marcorank_loads(trained):
    """Training prints what it gained, its logits have the promised scale, and its folder ranks on both backends."""
    text, folder = trained
    assert "57 questions to learn from, 3 held out" in text
    before, after = map(float, re.search(r"^loss: ([\d.]+) -> ([\d.]+)$", text, re.MULTILINE).groups())
    assert after < before
    assert re.search(r"^held-out_ndcg@10: [\d.]+ -> [\d.]+$", text, re.MULTILINE)
    assert len(re.findall(r"1,920 scores; a known answer comes first for \d+% of the questions", text)) == 3
    assert re.search(r"^Expected calibration error on 3 held-out questions: 0\.\d+ with sigmoid", text, re.MULTILINE)
    query, passages = "What is about the number 3?", [f"Passage {number} is about the number 3." for number in range(9)]
    scores = Reranker(folder, backend="torch", precision="fp32").score(query, passages)
    export_onnx(folder, folder)
    assert Reranker(folder, backend="onnx").score(query, passages) == pytest.approx(scores, abs=1e-3)
    assert CrossEncoder(str(folder)).predict([(query, passage) for passage in passages]) == pytest.approx(
        scores, abs=1e-3
    )


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(training, trained):
    """The same command resumes from the last whole checkpoint, asks no teacher again, and gives the same weights."""
    command, folder = training
    checkpoints = folder / "killed" / "checkpoints"
    example, *arguments = map(str, (*command, "--output", "killed"))
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(FOLDER / example), *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (checkpoints / "checkpoint-2" / "trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait(timeout=PATIENCE_S)
    # As a kill leaves it while a checkpoint is written.
    (checkpoints / "checkpoint-9").mkdir()
    saved = {file: file.stat().st_mtime_ns for file in (folder / "killed" / "teachers").rglob("*")}
    run(*command, "--output", "killed", folder=folder)
    assert {file: file.stat().st_mtime_ns for file in (folder / "killed" / "teachers").rglob("*")} == saved
    resumed, whole = (load_file(path / "model.safetensors") for path in (folder / "killed", trained[1]))
    assert resumed.keys() == whole.keys()
    assert all((resumed[name] == whole[name]).all() for name in whole)
