"""Scorers of other people: what they may return and raise, and what is said when it cannot be used."""

from __future__ import annotations

import asyncio
import gc
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from marcorank import Reranker, ScoreError

PASSAGES = ["a", "b", "c"]


class Returns:
    name = "mine"

    def __init__(self, values):
        self.values = values

    def score(self, query, passages):
        return self.values() if callable(self.values) else self.values


class Raises:
    name = "mine"

    def __init__(self, error):
        self.error = error

    def score(self, query, passages):
        raise self.error


class OnAnotherDevice:
    """A tensor as numpy finds it on a GPU."""

    def __init__(self, values):
        self.values = values

    def __array__(self, *args, **settings):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def detach(self):
        return torch.tensor(self.values)


class BadArray:
    """Fails while numpy reads it."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *args, **settings):
        raise self.error


@pytest.fixture(params=["rank", "arank", "score", "timeout_s"])
def logits(request):
    """All ways through a scorer."""

    def call(scorer):
        reranker = Reranker(scorer, timeout_s=60 if request.param == "timeout_s" else None)
        if request.param == "score":
            return reranker.score("q", PASSAGES).tolist()
        if request.param == "arank":
            ranking = asyncio.run(reranker.arank("q", PASSAGES))
        else:
            ranking = reranker.rank("q", PASSAGES)
        return [result.logit for result in sorted(ranking, key=lambda result: result.index)]

    return call


NUMBERS = [3.0, 1.0, 2.0]
GOOD = {
    "list": NUMBERS,
    "tuple of int": (3, 1, 2),
    "bool": [3.0, True, np.int8(2)],
    "range": range(3, 0, -1),
    "float16": np.array(NUMBERS, np.float16),
    "longdouble": np.array(NUMBERS, np.longdouble),
    "list of longdouble": [np.longdouble(number) for number in NUMBERS],
    "object": np.array(NUMBERS, object),
    "decimal": [Decimal(3), Decimal(1), Decimal(2)],
    "fraction": [Fraction(3), Fraction(1), Fraction(2)],
    "nothing masked": np.ma.masked_array(NUMBERS, mask=[0, 0, 0]),
    "tensor": torch.tensor(NUMBERS),
    "bfloat16": torch.tensor(NUMBERS, dtype=torch.bfloat16),
    "gradient": torch.tensor(NUMBERS, requires_grad=True),
    "list of tensors": [torch.tensor(number, dtype=torch.bfloat16, requires_grad=True) for number in NUMBERS],
    "gpu": OnAnotherDevice(NUMBERS),
    "list on a gpu": [OnAnotherDevice(number) for number in NUMBERS],
}


@pytest.mark.parametrize("values", GOOD.values(), ids=GOOD)
def test_numbers_of_every_kind_are_read(logits, values):
    """Real numbers are read as they are, without a warning."""
    expected = [3.0, 2.0, 1.0] if isinstance(values, range) else NUMBERS
    assert logits(Returns(values)) == expected


def test_a_series_is_read_in_its_order():
    """The labels of its index do not matter."""
    pandas = pytest.importorskip("pandas")
    for series in (pandas.Series(NUMBERS, index=[2, 0, 1]), pandas.Series(NUMBERS, dtype="Float64")):
        assert Reranker(Returns(series)).score("q", PASSAGES).tolist() == NUMBERS


async def no_plain_function():
    return NUMBERS


BAD = {
    "None": (None, r"returned None; expected 3 numbers, one per passage \(found NoneType\)"),
    "a None": ([3.0, None, 2.0], r"returned \[3.0, None, 2.0\]; .*found None"),
    "str": (["3", "1", "2"], r"returned \['3', '1', '2'\]; expected 3 numbers"),
    "bytes": (b"312", "returned b'312'; expected 3 numbers"),
    "complex": ([3 + 1j, 1, 2], "expected 3 numbers, .*found complex128"),
    "complex tensor": (torch.tensor([3 + 1j, 1, 2]), "expected 3 numbers, .*found complex128"),
    "dates": (np.array(["2020-01-01"] * 3, "datetime64[D]"), "expected 3 numbers, .*found datetime64"),
    "dict": ({"a": 3.0, "b": 1.0, "c": 2.0}, "expected 3 numbers, .*found dict"),
    "set": ({3.0, 1.0, 2.0}, "expected 3 numbers, .*found set"),
    "generator": (lambda: (number for number in NUMBERS), "expected 3 numbers, .*found generator"),
    "coroutine": (no_plain_function, "expected 3 numbers, .*`score` must not be async"),
    "class": (lambda: list, "returned <class 'list'>; expected 3 numbers"),
    "ragged": ([[3.0], [1.0, 2.0], [2.0]], "expected 3 numbers, .*inhomogeneous"),
    "sparse": (torch.tensor(NUMBERS).to_sparse(), "returned <Tensor object>; expected 3 numbers"),
    "no data": (torch.empty(3, device="meta"), "returned <Tensor object>; expected 3 numbers, .*meta tensor"),
    "one number": (3.0, r"logits of shape \(\) for 3 passages; expected one float per passage"),
    "column": (np.array([[3.0], [1.0], [2.0]]), r"logits of shape \(3, 1\) .* Flatten the array\."),
    "pairs": ([(0, 3.0), (1, 1.0), (2, 2.0)], r"logits of shape \(3, 2\) .*shape \(3,\)\.$"),
    "masked": (np.ma.masked_array(NUMBERS, mask=[0, 1, 0]), "returned <MaskedArray object>; .*found None"),
    "a masked value": ([3.0, np.ma.masked, 2.0], r"returned \[3.0, <MaskedConstant object>, 2.0\]; .*found None"),
    "huge int": ([10**400, 1, 2], "returned .1000.*expected 3 numbers, .*int too large"),
    "beyond float32": ([1e300, 1.0, 2.0], r"returned 1e\+300, which is beyond the range of float32"),
    "below float32": (np.array([1, -1e39, 2]), r"returned -1e\+39, which is beyond the range of float32"),
    "large int": ([10**40, 1, 2], r"returned 1e\+40, which is beyond the range of float32"),
    "no repr": (type("NoRepr", (), {"__repr__": lambda self: 1 / 0})(), "returned <NoRepr object>; expected 3 numbers"),
}


@pytest.mark.parametrize(("values", "match"), BAD.values(), ids=BAD)
def test_what_is_not_one_number_a_passage_is_named(logits, values, match):
    """One short error for every way of calling, which says what was found, and no warning beside it."""
    with pytest.raises(ScoreError, match=f"^Model `mine` {match}" if match.startswith("ret") else match) as caught:
        logits(Returns(values))
    assert len(str(caught.value)) < 400
    gc.collect()


def test_advice_fits_the_scorer():
    """Somebody who wrote the scorer is not told to check the weights of a model."""
    with pytest.raises(ScoreError, match=r"`passages\[1\]`.*`score` must return a finite number") as caught:
        Reranker(Returns([3.0, float("nan"), 2.0])).rank("q", PASSAGES)
    assert "weights" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        StopIteration("end"),
        StopAsyncIteration("end"),
        GeneratorExit("end"),
        asyncio.CancelledError("end"),
        asyncio.InvalidStateError("end"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("make", [Raises, lambda error: Returns(BadArray(error))], ids=["raised", "in array"])
def test_errors_that_steer_python_are_errors_of_the_scorer(logits, error, make):
    """They end neither a generator nor a task, and mean the same for every way of calling."""
    with pytest.raises(ScoreError, match=r"^Model `mine` (raised|returned) .*end") as caught:
        logits(make(error))
    assert caught.value.__cause__ is error


def test_an_error_without_a_message_is_named():
    """The name of its class alone."""
    with pytest.raises(ScoreError, match=r"^Model `mine` raised StopIteration$"):
        Reranker(Raises(StopIteration())).rank("q", PASSAGES)


@pytest.mark.parametrize("error", [KeyboardInterrupt("now"), SystemExit("now")], ids=lambda error: type(error).__name__)
def test_interrupts_pass(logits, error):
    """They are for the program, whoever raises them."""
    with pytest.raises(type(error), match="now"):
        logits(Raises(error))


@pytest.mark.parametrize("timeout_s", [None, 60])
@pytest.mark.parametrize("framework", ["core", "langchain"])
def test_an_event_loop_closed_during_a_call_leaves_no_error(framework, timeout_s):
    """The abandoned coroutine is freed without a message, and what its scorer returns later is dropped."""
    begun, go_on, answered = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        def score(self, query, passages):
            begun.set()
            assert go_on.wait(60)
            answered.set()
            return [1.0] * len(passages)

    def call():
        if framework == "core":
            return Reranker(Slow(), timeout_s=timeout_s).arank("q", PASSAGES)
        from langchain_core.documents import Document

        from marcorank.langchain import MarcoRerank

        rerank = MarcoRerank(reranker=Slow(), timeout_s=timeout_s)
        return rerank.acompress_documents([Document(page_content=text) for text in PASSAGES], "q")

    loop = asyncio.new_event_loop()
    task = loop.create_task(call())
    task._log_destroy_pending = False  # the message of asyncio itself, which is right
    loop.run_until_complete(asyncio.to_thread(begun.wait, 60))
    loop.close()
    del task
    gc.collect()  # an error here is a warning, and warnings are errors
    go_on.set()
    assert answered.wait(60)
