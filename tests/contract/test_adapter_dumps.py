"""What a dump of an adapter with an object for a model loads: nothing but that object."""

from __future__ import annotations

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
