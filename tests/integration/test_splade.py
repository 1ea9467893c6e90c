"""The architecture of the tiny bundled model: what SPLADE says of terms and tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from interaction_models import logits, only, products_of_terms, tokens
from marcorank.interaction import SpladeBertConfig, SpladeBertForSequenceClassification
from random_models import QUERY, passages

TEXTS = [text for text in passages() if text.strip() and len(text) < 600]
QUERIES = ["a museum", QUERY, "a museum", "[PAD] people of berlin"]


@pytest.fixture
def model(splade_folder):
    config = SpladeBertConfig.from_pretrained(splade_folder, num_labels=1)
    model = SpladeBertForSequenceClassification(config).eval()
    model.splade.copy_from(BertForMaskedLM.from_pretrained(splade_folder))
    return model


def test_terms_match_as_splade_says(model, splade_folder):
    """The first similarity: sentence-transformers' dot product with the query's 32 heaviest terms, per query token."""
    expected = products_of_terms(splade_folder, TEXTS)
    np.testing.assert_allclose(logits(only(model, 0), tokens(TEXTS)), expected, rtol=1e-4)


def test_tokens_match_by_the_weights_of_their_words(model, splade_folder):
    """The second similarity: the best cosines of the states of query tokens, weighted as the words in the query are."""
    language_model = BertForMaskedLM.from_pretrained(splade_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(splade_folder)

    @torch.no_grad()
    def read(text):
        given = tokenizer(text, return_tensors="pt")
        states = language_model.cls.predictions.transform(language_model.bert(**given).last_hidden_state)[0]
        words = torch.log1p(torch.relu(language_model(**given).logits[0])).amax(0)
        return given["input_ids"][0, 1:-1], torch.nn.functional.normalize(states[1:-1], dim=-1), words

    asked_ids, asked, words = read(QUERY)
    weights = words[asked_ids] / words[asked_ids].sum()
    expected = [float(((asked @ read(text)[1].T).amax(1) * weights).sum()) for text in TEXTS]
    np.testing.assert_allclose(logits(only(model, 1), tokens(TEXTS)), expected, atol=1e-4)
    assert np.std(expected) > 1e-3


@pytest.mark.parametrize("place", [0, 1])
def test_each_row_has_its_own_query(model, place):
    """Queries of different lengths in one batch, some of them twice, score as each does alone."""
    only(model, place)
    alone = [logits(model, tokens([TEXTS[0]], query))[0] for query in QUERIES]
    together = logits(model, tokens([TEXTS[0]] * len(QUERIES), QUERIES))
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert len(set(alone)) == 3


def test_sides_without_a_word_have_a_logit(model):
    """An empty query matches nothing, and an empty passage is the worst match."""
    assert np.isfinite(logits(model, tokens(TEXTS, ""))).all()
    only(model, 1)
    np.testing.assert_allclose(logits(model, tokens(["", "museum"], "museum")), [-1.0, 1.0], atol=0.3)
    np.testing.assert_allclose(logits(model, tokens([""])), [-1.0], atol=1e-5)
    np.testing.assert_allclose(logits(model, tokens(TEXTS, "")), 0.0, atol=1e-5)


def test_padding_neighbours_and_training_change_nothing(model):
    """A row alone, in a padded batch and in training has the same logit."""
    batch = tokens(TEXTS)
    together = logits(model, batch)
    alone = [logits(model, tokens([text]))[0] for text in TEXTS]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits(model.train(), batch), together, rtol=1e-4, atol=1e-4)


def test_every_weight_learns(model):
    """One backward pass reaches the encoder and every part of the head."""
    model.train()(**tokens(TEXTS)).logits.sum().backward()
    for name, values in model.named_parameters():
        assert values.grad.abs().sum() > 0, name


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    """A folder loads as the class it was."""
    with torch.no_grad():
        model.similarities.weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is SpladeBertForSequenceClassification
    np.testing.assert_allclose(logits(loaded, tokens(TEXTS)), logits(model, tokens(TEXTS)), rtol=1e-5)
