"""What a dump of an adapter with an object for a model loads: nothing but that object."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from adapters import ADAPTERS
from marcorank import Reranker
from marcorank.testing import WordOverlapScorer


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request):
    """The adapter of each framework."""
    return ADAPTERS[request.param]


@pytest.mark.parametrize("name", ["bundled", "cross-encoder/ms-marco-MiniLM-L6-v2", "owner/model"])
@pytest.mark.parametrize("wrap", [lambda scorer: scorer, Reranker])
def test_a_scorer_with_the_name_of_a_model_is_not_that_model(adapter, name, wrap):
    """A dump of such an adapter loads no other model, now or at the first use."""
    scorer = WordOverlapScorer()
    scorer.name = name
    shared = wrap(scorer)
    rerank = adapter.make(reranker=shared)
    assert getattr(rerank, adapter.model_field) == name
    plain = adapter.plain(rerank)
    with pytest.raises(ValidationError, match=f"is '{name} .object.', .*Pass the object again"):
        adapter.from_plain(plain)
    again = adapter.from_plain(plain, reranker=shared)
    assert again == rerank
    assert adapter.plain(again) == plain


@pytest.mark.parametrize(
    ("skim", "plain"),
    [
        ("bundled", "bundled"),
        ({"model": "bundled", "max_length": 64}, {"model": "bundled", "max_length": 64}),
        (Reranker("bundled", max_length=64), Reranker("bundled", max_length=64).to_dict()),
        (WordOverlapScorer(), None),
    ],
    ids=["name", "dict", "reranker", "scorer"],
)
def test_a_skimming_model_in_every_form(adapter, skim, plain):
    """Dumps say it as they say a fallback; a scorer object is in pickles alone."""
    rerank = adapter.make(model="bundled", skim=skim, skim_keep=5)
    assert adapter.plain(rerank)["skim"] == plain
    assert "skim=" in repr(rerank)
    assert "skim_keep=5" in repr(rerank)
    again = pickle.loads(pickle.dumps(rerank))  # noqa: S301
    assert again.core.skim.name == rerank.core.skim.name
    if plain is not None:
        for copied in adapter.copies(rerank):
            assert copied.core.to_dict() == rerank.core.to_dict()
            assert adapter.plain(copied) == adapter.plain(rerank)
    core = Reranker("bundled", skim=skim)
    beside = adapter.make(reranker=core)
    assert adapter.from_plain(adapter.plain(beside), reranker=core) == beside
