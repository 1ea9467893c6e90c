"""The architecture of the bundled model: it starts as the bi-encoder and the SPLADE model it was made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertForMaskedLM

from interaction_models import logits, only, products_of_terms, tokens
from marcorank.interaction import InteractionBertConfig, InteractionBertForSequenceClassification
from random_models import NARROW_SPLADE, QUERY, bi_encoder, passages

TEXTS = [text for text in passages() if text.strip() and len(text) < 600]
SHUT = -1e4


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return bi_encoder(tmp_path_factory.mktemp("bi-encoder"))


@pytest.fixture
def model(start):
    config = InteractionBertConfig.from_pretrained(start, num_labels=1, splade=NARROW_SPLADE)
    return InteractionBertForSequenceClassification.from_pretrained(start, config=config).eval()


def test_with_shut_gates_it_is_the_bi_encoder(start, model):
    """The first similarity is the cosine that sentence-transformers computes with the same weights."""
    with torch.no_grad():
        model.gates.fill_(SHUT)
    vectors = SentenceTransformer(str(start), device="cpu").encode([QUERY, *TEXTS], normalize_embeddings=True)
    np.testing.assert_allclose(logits(only(model, 0), tokens(TEXTS)), vectors[1:] @ vectors[0], atol=1e-5)


def test_open_gates_let_the_sides_read_each_other(model):
    """The same weights with open gates give other similarities: the gates work."""
    before = logits(only(model, 0), tokens(TEXTS))
    with torch.no_grad():
        model.gates.fill_(0.0)
    assert np.abs(logits(model, tokens(TEXTS)) - before).max() > 1e-3


def test_best_tokens_and_words_are_counted_as_written(model):
    """A passage that holds the query's words has all of them; with shut gates each finds itself a near match."""
    with torch.no_grad():
        model.gates.fill_(SHUT)
    batch = tokens([QUERY, "museum", ""])
    words = logits(only(model, 3), batch)
    np.testing.assert_allclose(words, [1.0, 0.0, 0.0], atol=1e-6)
    for place in (1, 2):
        best = logits(only(model, place), batch)
        np.testing.assert_allclose(best[[0, 2]], [1.0, -1.0], atol=1e-4)
        assert -1 < best[1] < 1


def test_rare_words_count_more(model):
    """Word weights are inverse document frequencies: 1 for a word that is never seen."""
    frequencies = torch.zeros(model.config.vocab_size)
    berlin, people = (int(tokens([word], query="x")["input_ids"][0, 3]) for word in ("berlin", "people"))
    frequencies[people] = 900
    model.set_word_weights(frequencies, 1000)
    words = logits(only(model, 3), tokens(["berlin", "people"], query="berlin people"))
    assert words[0] > 0.9
    assert 0 < words[1] < 0.1
    assert model.word_weights.weight[berlin].item() == 1.0


def test_terms_match_as_splade_says(model, splade_folder):
    """The last similarity: sentence-transformers' dot product with the query's 32 heaviest terms, per query token."""
    model.splade.copy_from(BertForMaskedLM.from_pretrained(splade_folder))
    expected = products_of_terms(splade_folder, TEXTS)
    np.testing.assert_allclose(logits(only(model, 4), tokens(TEXTS)), expected, rtol=1e-4)


def test_padding_neighbours_and_training_change_nothing(model):
    """A row alone, in a padded batch and in training, where padding is left out, has the same logit."""
    batch = tokens(TEXTS)
    together = logits(model, batch)
    alone = [logits(model, tokens([text]))[0] for text in TEXTS]
    np.testing.assert_allclose(alone, together, atol=1e-4)
    np.testing.assert_allclose(logits(model.train(), batch), together, atol=1e-4)


def test_every_weight_learns(model):
    """One backward pass reaches the encoder, the gates of both directions, and every part of the head."""
    model.train()(**tokens(TEXTS)).logits.sum().backward()
    for name, values in model.named_parameters():
        if "pooler" not in name and "token_type" not in name:
            assert values.grad is not None, name
    assert (model.gates.grad.abs().sum(-1) > 0).all()


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    """A folder keeps all of the head, and loads as the class it was."""
    from transformers import AutoModelForSequenceClassification

    with torch.no_grad():
        model.classifier.weight.normal_()
        model.gates.normal_()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is InteractionBertForSequenceClassification
    np.testing.assert_allclose(logits(loaded, tokens(TEXTS)), logits(model, tokens(TEXTS)), atol=1e-5)
