"""The head of a modular cross-encoder, in numpy and in openvino, against the modules of sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from openvino import Model
from openvino import opset13 as ops
from sentence_transformers.sentence_transformer.modules import Pooling

from marcorank._inference.backends.openvino import shared_core
from marcorank._inference.backends.openvino_head import with_head
from marcorank._inference.head import ACTIVATIONS, POOLING_MODES, Dense, Head, LayerNorm, UnitLength, logits_of

WIDTH, TOKENS = 16, 7
FUNCTIONAL = torch.nn.functional


def random_values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def in_openvino(head, hidden):
    """The logits of the head as a part of a graph."""
    given = ops.parameter([-1, -1, hidden.shape[-1]], np.float32, name="hidden")
    encoder = Model([ops.result(ops.add(given, np.float32(0)))], [given])
    compiled = shared_core().compile_model(
        with_head(encoder, head, encoder.outputs[0]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(hidden)[0][:, 0]


def pooled(modes, hidden):
    """The vector of sentence-transformers itself, from hidden states that are padded on the right."""
    padded = np.concatenate([hidden, random_values(1, 3, hidden.shape[-1], seed=9)], axis=1)
    mask = (torch.arange(padded.shape[1]) < hidden.shape[1]).long()[None]
    features = {"token_embeddings": torch.from_numpy(padded), "attention_mask": mask}
    return Pooling(hidden.shape[-1], modes if len(modes) > 1 else modes[0])(features)["sentence_embedding"]


@pytest.mark.parametrize("modes", [*((mode,) for mode in POOLING_MODES), ("mean", "cls")], ids="-".join)
def test_pooling(modes):
    """Each pooling mode, and two of them joined, give the vector of sentence-transformers."""
    hidden = random_values(1, TOKENS, WIDTH)
    weight = random_values(1, WIDTH * len(modes))
    head = Head(WIDTH, modes, (Dense(weight, None, "Identity"),))
    expected = (pooled(modes, hidden) @ torch.from_numpy(weight).T)[:, 0].numpy()
    padded = np.concatenate([hidden, random_values(1, 3, WIDTH, seed=9)], axis=1)
    assert np.allclose(logits_of(head, padded, np.array([TOKENS])), expected, atol=1e-5)
    assert np.allclose(in_openvino(head, hidden), expected, atol=1e-5)


@pytest.mark.parametrize("residual", ["none", "input", "projected"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_dense(activation, residual):
    """Each activation, with and without a residual connection."""
    hidden = 3 * random_values(1, TOKENS, WIDTH)
    last = random_values(1, WIDTH, seed=3)
    projection = random_values(WIDTH, WIDTH, seed=2) if residual == "projected" else None
    layer = Dense(random_values(WIDTH, WIDTH), random_values(WIDTH), activation, residual != "none", projection)
    head = Head(WIDTH, ("cls",), (layer, Dense(last, np.ones(1, dtype=np.float32), "Identity")))
    first = torch.from_numpy(hidden[:, 0])
    values = getattr(torch.nn, activation)()(
        FUNCTIONAL.linear(first, torch.from_numpy(layer.weight), torch.from_numpy(layer.bias))
    )
    if residual == "input":
        values = values + first
    elif residual == "projected":
        values = values + FUNCTIONAL.linear(first, torch.from_numpy(projection))
    expected = FUNCTIONAL.linear(values, torch.from_numpy(last))[:, 0].numpy() + 1
    assert np.allclose(logits_of(head, hidden, np.array([TOKENS])), expected, atol=2e-5)
    assert np.allclose(in_openvino(head, hidden), expected, atol=2e-5)


def test_norms():
    """Layer normalisation and unit length."""
    hidden = random_values(1, TOKENS, WIDTH)
    scale, shift, last = random_values(WIDTH), random_values(WIDTH, seed=1), random_values(1, WIDTH, seed=2)
    head = Head(WIDTH, ("cls",), (LayerNorm(scale, shift), UnitLength(), Dense(last, None, "Identity")))
    values = FUNCTIONAL.layer_norm(
        torch.from_numpy(hidden[:, 0]), (WIDTH,), torch.from_numpy(scale), torch.from_numpy(shift)
    )
    expected = FUNCTIONAL.linear(FUNCTIONAL.normalize(values, dim=-1), torch.from_numpy(last))[:, 0].numpy()
    assert np.allclose(logits_of(head, hidden, np.array([TOKENS])), expected, atol=1e-6)
    assert np.allclose(in_openvino(head, hidden), expected, atol=1e-6)
