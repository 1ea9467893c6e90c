"""What both adapters promise, each with a scorer in this process and behind a server."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from adapters import ADAPTERS
from engines import word_overlap
from marcorank import InvalidInputError, Logistic, Reranker, RerankTimeoutError, ScoreError, UnknownModelError
from marcorank.testing import WordOverlapScorer

pytestmark = pytest.mark.usefixtures("engine")

QUERY = "red apple tart"
TEXTS = ["green pear", "red apple tart", "", "red car", "red apple", "red car"]

passages = st.lists(st.text("abc \n\x00é🙂", max_size=12), max_size=8)


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request):
    """The adapter of each framework."""
    return ADAPTERS[request.param]


class Broken:
    """Gives no number."""

    def score(self, query, passages):
        return [float("nan")] * len(passages)


@given(
    texts=passages,
    top_n=st.none() | st.integers(1, 9),
    scale=st.tuples(st.just("identity"), st.none() | st.floats(-6, 6))
    | st.tuples(st.sampled_from(["sigmoid", Logistic(0.5, -1.0)]), st.none() | st.floats(0, 1)),
)
def test_same_order_and_scores_as_the_core(adapter, texts, top_n, scale):
    """Order and scores are those of the core, for any texts, top_n, activation and threshold on its scale."""
    activation, threshold = scale
    rerank = adapter.with_overlap(activation=activation, top_n=top_n, score_threshold=threshold)
    found = adapter.rerank(rerank, adapter.items(texts), "a b c")
    core = Reranker(word_overlap(), activation=activation)
    expected = core.rank("a b c", texts, top_n=top_n, score_threshold=threshold)
    assert adapter.indexes(found) == [result.index for result in expected]
    assert adapter.scores(found) == [result.score for result in expected]


def test_order_and_scores_of_a_real_model_are_those_of_the_core(adapter):
    """The bundled model gives the same scores through the adapter and the core."""
    found = adapter.rerank(adapter.make(model="bundled", top_n=None), adapter.items(TEXTS), QUERY)
    ranking = Reranker("bundled").rank(QUERY, TEXTS)
    assert adapter.indexes(found) == [result.index for result in ranking]
    assert adapter.scores(found) == [result.score for result in ranking]


@given(texts=passages)
def test_inputs_are_never_changed(adapter, texts):
    """What comes in is deep-equal before and after, and the results are new objects."""
    items = adapter.items(texts)
    before = copy.deepcopy(items)
    found = adapter.rerank(adapter.with_overlap(top_n=None), items, "a")
    assert items == before
    assert not set(map(id, adapter.mutable_parts(items))) & set(map(id, adapter.mutable_parts(found)))


async def test_async_gives_what_sync_gives(adapter):
    """Both ways give equal results."""
    rerank = adapter.with_overlap(score_threshold=-4)
    expected = adapter.rerank(rerank, adapter.items(TEXTS), QUERY)
    assert await adapter.arerank(rerank, adapter.items(TEXTS), QUERY) == expected


def test_scores_are_plain_floats_that_go_through_json(adapter):
    """The score is a Python float, and JSON keeps it."""
    found = adapter.rerank(adapter.with_overlap(top_n=None), adapter.items(TEXTS), QUERY)
    assert {type(score) for score in adapter.scores(found)} == {float}
    assert adapter.scores_through_json(found) == adapter.scores(found)


@pytest.mark.parametrize(
    "score",
    [
        0.5,
        np.float32(0.5),
        np.float16(0.5),
        np.longdouble(0.5),
        np.array(0.5),
        np.array([0.5]),
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True),
        Decimal("0.5"),
        Fraction(1, 2),
    ],
    ids=repr,
)
def test_a_number_of_another_package_becomes_a_float(adapter, score):
    """The first-stage score is kept as a plain float, whatever kind of number it came as."""
    found = adapter.rerank(adapter.with_overlap(**adapter.keeping), [adapter.scored(score)], "red")
    assert adapter.metadata(found[0])["retrieval_score"] == 0.5
    assert type(found[0].metadata["retrieval_score"]) is float


@pytest.mark.parametrize(
    "score",
    [
        None,
        float("nan"),
        float("inf"),
        np.float32("nan"),
        torch.tensor(float("-inf")),
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("1e999"),
        10**400,
        "0.5",
        b"0.5",
        True,
        np.True_,
        1j,
        np.complex64(1),
        np.array([0.5, 0.25]),
        torch.tensor([]),
        [0.5],
    ],
    ids=lambda score: repr(score)[:20],
)
def test_what_is_not_a_finite_number_is_not_kept(adapter, score):
    """There is no key rather than one with a value that JSON, a store or a comparison cannot take."""
    found = adapter.rerank(adapter.with_overlap(**adapter.keeping), [adapter.scored(score)], "red")
    assert "retrieval_score" not in adapter.metadata(found[0])


async def test_an_empty_list_needs_no_model(adapter):
    """Nothing in, a new empty list out, without a call of the model, sync and async."""
    scorer = WordOverlapScorer()
    rerank = adapter.make(reranker=scorer)
    items: list[object] = []
    found = adapter.rerank(rerank, items, QUERY)
    assert found == await adapter.arerank(rerank, [], QUERY) == []
    assert found is not items
    assert scorer.calls == 0


def test_nothing_is_loaded_before_the_first_use(adapter, tmp_path):
    """Making an adapter, and ranking nothing, reads no model: a folder without one is no error yet."""
    rerank = adapter.make(model=tmp_path)
    assert adapter.rerank(rerank, [], QUERY) == []
    with pytest.raises(OSError, match=r"config\.json|weights"):
        adapter.rerank(rerank, adapter.items(TEXTS), QUERY)


def test_importing_one_loads_no_engine_and_no_other_framework(adapter):
    """Importing, making one, and an empty list load no engine."""
    engines = {"onnxruntime", "torch", "sentence_transformers"}
    others = {"langchain": "llama_index", "llama-index": "langchain_core"}
    call = {"langchain": "compress_documents([], 'q')", "llama-index": "postprocess_nodes([], query_str='q')"}
    code = (
        "import sys\n"
        f"from {adapter.rerank_class.__module__} import MarcoRerank\n"
        f"assert MarcoRerank({adapter.model_field}='bundled').{call[adapter.name]} == []\n"
        f"loaded = {engines | {others[adapter.name]}!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_the_threshold_comes_before_top_n(adapter):
    """The threshold is on the scale of the activation and applies before top_n; zero is a threshold."""
    items = adapter.items(["red", "red apple", "red apple tart", "pear"])
    rerank = adapter.with_overlap(top_n=2, score_threshold=0)
    assert adapter.indexes(adapter.rerank(rerank, items, QUERY)) == [2, 1]
    everything = adapter.with_overlap(top_n=None, score_threshold=0)
    assert adapter.indexes(adapter.rerank(everything, items, QUERY)) == [2, 1]
    strict = adapter.with_overlap(activation="sigmoid", top_n=2, score_threshold=0.9)
    assert adapter.indexes(adapter.rerank(strict, items, QUERY)) == [2]
    assert adapter.rerank(adapter.with_overlap(score_threshold=6.0), items, QUERY) == []
    # Half of the words: a logit of 0, whose sigmoid is the threshold itself.
    half = adapter.with_overlap(activation="sigmoid", score_threshold=0.5)
    assert adapter.scores(adapter.rerank(half, adapter.items(["red"]), "red apple")) == [0.5]


def test_top_n_is_three_unless_given_and_none_means_all(adapter):
    """Without top_n three results come back; with None all of them."""
    items = adapter.items(TEXTS)
    assert len(adapter.rerank(adapter.with_overlap(), items, QUERY)) == 3
    assert len(adapter.rerank(adapter.with_overlap(top_n=None), items, QUERY)) == 6


def test_values_become_plain(adapter):
    """Paths and NumPy numbers are taken, and stand in dumps as text and numbers."""
    rerank = adapter.with_overlap(top_n=np.int64(2), score_threshold=np.float32(0.5))
    assert adapter.plain(rerank).items() >= {"top_n": 2, "score_threshold": 0.5}.items()
    assert (type(rerank.top_n), type(rerank.score_threshold)) == (int, float)
    assert '"cache"' in adapter.json(adapter.make(cache_folder=Path("cache")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_n": 0}, "`top_n` is 0; expected a whole number of at least 1"),
        ({"top_n": -1}, "`top_n` is -1; expected"),
        ({"top_n": True}, "`top_n` is True; expected"),
        ({"top_n": "3"}, "`top_n` is '3'; expected"),
        ({"top_n": 2.0}, "`top_n` is 2.0; expected"),
        ({"score_threshold": "0.5"}, "`score_threshold` is '0.5'; expected None or a finite number"),
        ({"score_threshold": True}, "`score_threshold` is True; expected"),
        ({"score_threshold": float("nan")}, "`score_threshold` is nan; expected"),
        ({"model": 5}, "`MODEL` is 5; expected a model name or the path of a model folder"),
        ({"model": WordOverlapScorer()}, "`MODEL` is <.*goes in `reranker`"),
        ({"activation": "softmax"}, "`activation` is 'softmax'; expected one of 'identity', 'sigmoid'"),
        ({"activation": {"a": -1, "b": 0}}, "`a` of Logistic is -1; expected a finite number above 0"),
        ({"backend": "tensorflow"}, "`backend` is 'tensorflow'; expected one of 'auto'"),
        ({"precision": "int4"}, "`precision` is 'int4'; expected one of 'auto'"),
        ({"device": ""}, "`device` is empty; expected a text"),
        ({"max_length": "512"}, "`max_length` is '512'; expected a whole number"),
        ({"max_query_tokens": 0}, "`max_query_tokens` is 0; expected"),
        ({"long_passages": "drop"}, "`long_passages` is 'drop'; expected one of 'truncate', 'windows'"),
        ({"local_files_only": "yes"}, "`local_files_only` is 'yes'; expected one of True, False, None"),
        ({"allow_pickle": 1}, "`allow_pickle` is 1; expected one of True, False"),
        ({"token": ""}, "`token` is empty; expected a text"),
        ({"token": SecretStr("")}, "`token` is empty; expected a text"),
        ({"reranker": "bundled"}, "`reranker` is 'bundled'; expected a marcorank.Reranker.*goes in `MODEL`"),
        ({"reranker": WordOverlapScorer}, "`reranker` is <class .*; expected a marcorank.Reranker"),
        ({"topn": 3}, r"no field 'topn'\. Did you mean 'top_n'\?"),
        ({"presicion": "fp32"}, r"no field 'presicion'\. Did you mean 'precision'\?"),
        ({"batch": 3}, "batch\n.*Extra inputs are not permitted"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_was_found(adapter, settings, message):
    """A setting that cannot be used is a ValidationError, which is a ValueError, with the core's message."""
    with pytest.raises(ValidationError, match=message.replace("MODEL", adapter.model_field)):
        adapter.make(**settings)


def test_assigning_a_bad_setting_is_an_error(adapter):
    """A field is checked whenever it changes, and what it was stays."""
    rerank = adapter.make()
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        rerank.top_n = 0
    assert rerank.top_n == 3
    for change in (
        lambda: setattr(rerank, "reranker", word_overlap()),
        lambda: rerank.model_copy(update={"reranker": word_overlap()}),
    ):
        with pytest.raises(
            ValidationError, match=r"`reranker` cannot be changed, .* new MarcoRerank\(reranker=\.\.\.\)"
        ):
            change()
    assert rerank.reranker is None


def test_settings_that_exclude_each_other_are_refused_at_once(adapter):
    """An assignment that the whole of the settings does not allow changes nothing; one that it allows is followed."""
    server = adapter.make(model="tei+http://127.0.0.1:9")
    before, core = adapter.plain(server), server.core
    for change in (
        lambda: setattr(server, "backend", "onnx"),
        lambda: server.model_copy(update={"backend": "onnx"}),
        lambda: adapter.make(model="bundled", backend="onnx").model_copy(
            update={adapter.model_field: server.core.model}
        ),
    ):
        with pytest.raises(InvalidInputError, match="`backend` is 'onnx', which has no effect on the server"):
            change()
    assert adapter.plain(server) == before
    assert server.core is core
    # Valid only together, in either order.
    for names in (["backend", adapter.model_field], [adapter.model_field, "backend"]):
        settings = {"backend": "onnx", adapter.model_field: "bundled"}
        local = server.model_copy(update={name: settings[name] for name in names})
        assert local.core.to_dict().items() >= {"backend": "onnx", "model": "bundled"}.items()


def test_an_unknown_model_is_an_error_at_once(adapter):
    """A name that can be no model is found when the adapter is made."""
    with pytest.raises(UnknownModelError, match="Model 'minilm' is unknown"):
        adapter.make(model="minilm")


async def test_what_is_no_item_is_named_by_its_index(adapter):
    """None or a text among the items, or no list at all, is an error that names index and type, sync and async."""
    (item,) = adapter.items(["a"])
    name, kind = adapter.items_argument, adapter.item_kind
    cases = [
        ([item, None], rf"`{name}\[1\]` is a NoneType; expected {kind}"),
        (["a"], rf"`{name}\[0\]` is a str; expected {kind}"),
        ("a", f"`{name}` is a str; expected a list"),
        (item, f"`{name}` is a {type(item).__name__}; expected a list of .*, even for one"),
        (None, f"`{name}` is a NoneType; expected a list"),
    ]
    for items, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            adapter.rerank(adapter.with_overlap(), items, QUERY)
        with pytest.raises(InvalidInputError, match=message):
            await adapter.arerank(adapter.with_overlap(), items, QUERY)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        *((blank, "`query` is blank") for blank in ("  ", "\u200b", "\ufeff\x00 \u2060")),
        (None, "`query` is None; expected a str"),
    ],
)
async def test_a_query_has_to_say_something(adapter, query, message):
    """A blank query or None is a clear error, sync and async."""
    rerank = adapter.with_overlap()
    with pytest.raises(InvalidInputError, match=message):
        adapter.rerank(rerank, adapter.items(TEXTS), query)
    with pytest.raises(InvalidInputError, match=message):
        await adapter.arerank(rerank, adapter.items(TEXTS), query)


async def test_a_score_that_is_no_number_is_an_error(adapter):
    """NaN from a model never becomes a rank, sync and async."""
    rerank = adapter.make(reranker=Broken())
    with pytest.raises(ScoreError, match=r"Model `Broken` returned nan for `passages\[0\]`"):
        adapter.rerank(rerank, adapter.items(TEXTS), QUERY)
    with pytest.raises(ScoreError, match=r"Model `Broken` returned nan for `passages\[0\]`"):
        await adapter.arerank(rerank, adapter.items(TEXTS), QUERY)


EVERY_SETTING = {
    "model": "bundled",
    "top_n": None,
    "score_threshold": 0.25,
    "activation": "sigmoid",
    "backend": "onnx",
    "device": "cpu",
    "precision": "int8",
    "max_length": 128,
    "max_query_tokens": 32,
    "long_passages": "windows",
    "special_tokens": "text",
    "revision": "main",
    "cache_folder": "cache",
    "local_files_only": True,
    "allow_pickle": True,
    "skim": "bundled",
    "skim_keep": 20,
    "blend": 0.25,
    "max_similarity": 0.8,
}


@pytest.mark.parametrize(
    "settings",
    [{}, EVERY_SETTING, {"activation": Logistic(0.8, -1.2), "max_drop": 0.3}, {"activation": {"a": 0.8, "b": -1.2}}],
)
def test_settings_round_trip(adapter, settings):
    """Dict, JSON, pickle and copies give an equal adapter over an equal core; a pickle is a few hundred bytes."""
    rerank = adapter.make(**settings)
    for again in adapter.copies(rerank):
        assert again == rerank
        assert adapter.plain(again) == adapter.plain(rerank)
        assert again.core.to_dict() == rerank.core.to_dict()
    assert len(pickle.dumps(rerank)) < 1000
    assert rerank != adapter.make(**{**settings, "top_n": 9})


def test_dumps_hold_every_setting(adapter):
    """A dump is the settings that were given, beside the defaults of the others."""
    plain = adapter.plain(adapter.make(**EVERY_SETTING))
    plain["model"] = plain.pop(adapter.model_field)
    assert plain.items() >= EVERY_SETTING.items()


def test_a_pickle_works_after_the_model_was_used(adapter):
    """An adapter that has loaded its model still pickles by its settings, and the copy ranks the same."""
    rerank = adapter.with_overlap(top_n=2)
    expected = adapter.rerank(rerank, adapter.items(TEXTS), QUERY)
    again = pickle.loads(pickle.dumps(rerank))  # noqa: S301
    assert adapter.rerank(again, adapter.items(TEXTS), QUERY) == expected


def test_a_scorer_that_cannot_be_pickled_is_an_error(adapter):
    """A pickle never comes back with another model because its scorer was left out."""
    scorer = WordOverlapScorer()
    scorer.unpicklable = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"[Cc]an't (pickle|get local) "):
        pickle.dumps(adapter.make(reranker=scorer))


@pytest.mark.parametrize("token", ["hf_secret", SecretStr("hf_secret")], ids=["text", "secret"])
def test_the_token_stays_inside(adapter, token, load):
    """The token reaches the model loader, also of a copy, and is in no dump, repr, pickle or error."""
    rerank = adapter.make(token=token)
    copied = adapter.make().model_copy(update={"token": token})
    loaded = load(WordOverlapScorer)
    for each in (rerank, copied, copy.deepcopy(rerank)):
        shown = [
            repr(each),
            str(each),
            adapter.json(each),
            str(adapter.plain(each)),
            each.model_dump_json(),
            str(each.model_dump()),
            str(vars(each)),
            repr(each.core),
        ]
        assert not any("hf_secret" in text for text in shown)
        assert b"hf_secret" not in pickle.dumps(each)
        each.core.warm_up()
    assert len(loaded) == 2  # a copy of an adapter has the same core
    assert {settings.token for settings in loaded} == {"hf_secret"}
    with pytest.raises(ValidationError, match="`token` was given beside a `reranker`") as raised:
        adapter.make(reranker=Reranker("bundled"), token=token)
    assert "hf_secret" not in str(raised.value)
    with pytest.raises(ValidationError, match="`token` is of type bytes; expected None or a text") as raised:
        adapter.make(token=b"hf_secret")
    assert "hf_secret" not in str(raised.value)


def test_fields_are_the_settings_of_the_core(adapter):
    """Every setting of the core is a field, with the same default."""
    core = {name: parameter.default for name, parameter in signature(Reranker).parameters.items()}
    core[adapter.model_field] = core.pop("model")
    fields = {name: field.default for name, field in adapter.rerank_class.model_fields.items()}
    assert core.items() <= fields.items()


def test_a_shared_reranker_does_the_work(adapter):
    """Adapters that are given one reranker use that one; their dumps say what it is and make an equal one."""
    shared = Reranker("bundled", max_length=64, activation="sigmoid")
    rerank = adapter.make(reranker=shared, top_n=5)
    assert rerank.core is adapter.make(reranker=shared).core is copy.deepcopy(rerank).core is shared
    assert (getattr(rerank, adapter.model_field), rerank.max_length, rerank.activation) == ("bundled", 64, "sigmoid")
    for again in (
        adapter.from_plain(adapter.plain(rerank)),
        adapter.rerank_class(**rerank.model_dump(exclude_unset=True, exclude={"class_name"})),
        pickle.loads(pickle.dumps(rerank)),  # noqa: S301
    ):
        assert again.core.to_dict() == shared.to_dict()
        assert again.top_n == 5
    beside = adapter.from_plain(adapter.plain(rerank), reranker=shared)
    assert beside.core is shared
    assert adapter.plain(beside) == adapter.plain(rerank)
    rerank.top_n = 6
    assert (rerank.top_n, rerank.core) == (6, shared)
    assert adapter.make(reranker=shared, device=None, token=None).core is shared


@pytest.mark.parametrize(
    "shared", [WordOverlapScorer(), Reranker(WordOverlapScorer()), Reranker(WordOverlapScorer(), activation="sigmoid")]
)
def test_a_dump_of_an_adapter_with_a_scorer_is_no_other_model(adapter, shared):
    """A scorer object is in no dump: the dump fails to load instead of taking another model, until it is passed."""
    rerank = adapter.make(reranker=shared, top_n=1)
    plain = adapter.plain(rerank)
    assert (plain[adapter.model_field], plain["activation"]) == ("word-overlap", rerank.core.activation)
    with pytest.raises(UnknownModelError, match="Model 'word-overlap' is unknown"):
        adapter.from_plain(plain)
    again = adapter.from_plain(plain, reranker=shared)
    assert again == rerank
    assert adapter.plain(again) == plain


@pytest.mark.parametrize(
    ("shared", "name", "value"),
    [
        (Reranker("bundled"), "model", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        (Reranker("bundled"), "activation", "sigmoid"),
        (Reranker("bundled"), "backend", "onnx"),
        (WordOverlapScorer(), "model", "bundled"),
        (WordOverlapScorer(), "device", "cpu"),
    ],
)
def test_a_shared_reranker_has_its_own_settings(adapter, shared, name, value):
    """Model settings beside a reranker would be ignored, so they are an error, also when they come later."""
    field = adapter.model_field if name == "model" else name
    message = f"`{field}` is '{value}', but that of the given `reranker` is .*Pass only one"
    with pytest.raises(ValidationError, match=message):
        adapter.make(reranker=shared, **{field: value})
    rerank = adapter.make(reranker=shared)
    with pytest.raises(ValidationError, match=message):
        setattr(rerank, field, value)
    with pytest.raises(ValidationError, match=message):
        rerank.model_copy(update={field: value})


def test_a_change_of_settings_reaches_the_core(adapter):
    """A copy with another setting, and an assignment, are followed; a copy with another top_n shares the model."""
    rerank = adapter.make(model="bundled")
    assert rerank.model_copy(update={"top_n": 1}).core is rerank.core
    assert rerank.model_copy(update={"max_length": 64}).core.to_dict()["max_length"] == 64
    rerank.max_length = 32
    assert rerank.core.to_dict()["max_length"] == 32
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        rerank.model_copy(update={"top_n": 0})
    scored = adapter.with_overlap()
    scored.activation = "sigmoid"
    found = adapter.rerank(scored, adapter.items(["red"]), "red")
    assert adapter.scores(found) == pytest.approx([0.99331], abs=1e-5)


@pytest.mark.parametrize("activation", [Logistic(0.5, -1.0), {"a": 0.5, "b": -1.0}])
def test_a_fitted_map_is_an_activation(adapter, activation):
    """A Logistic or its dict is kept as one, shown, dumped plainly, and makes plain floats."""
    rerank = adapter.with_overlap(activation=activation, top_n=1)
    assert rerank.activation == rerank.core.activation == Logistic(0.5, -1.0)
    assert "activation=Logistic(a=0.5, b=-1.0)" in repr(rerank)
    assert adapter.plain(rerank)["activation"] == {"a": 0.5, "b": -1.0}
    (score,) = adapter.scores(adapter.rerank(rerank, adapter.items(["red apple"]), "red apple"))
    assert type(score) is float
    assert score == pytest.approx(0.817574, abs=1e-6)
    changed = rerank.model_copy(update={"activation": Logistic(1, 0)})
    assert changed.core.activation == Logistic(1.0, 0.0)


def test_a_shared_reranker_with_a_fitted_map_keeps_it(adapter):
    """The adapter shows the map of its reranker, takes its own dump beside it, and refuses another."""
    shared = Reranker("bundled", activation=Logistic(0.8, -1.2))
    rerank = adapter.make(reranker=shared)
    assert rerank.activation == Logistic(0.8, -1.2)
    assert adapter.plain(rerank) == adapter.plain(adapter.make(model="bundled", activation=Logistic(0.8, -1.2)))
    assert adapter.plain(adapter.from_plain(adapter.plain(rerank), reranker=shared)) == adapter.plain(rerank)
    assert adapter.from_plain(adapter.plain(rerank)).core.to_dict() == shared.to_dict()
    with pytest.raises(
        ValidationError, match=r"`activation` is Logistic\(a=0.9.* `reranker` is Logistic\(a=0.8.*Pass only one"
    ):
        adapter.make(reranker=shared, activation={"a": 0.9, "b": -1.2})


def test_the_other_frameworks_name_of_the_model_is_explained(adapter):
    """Who comes from the other adapter is told what the field is called here."""
    message = f"MarcoRerank has no field `{adapter.other_model_field}`; name it `{adapter.model_field}`"
    with pytest.raises(ValidationError, match=message):
        adapter.rerank_class(**{adapter.other_model_field: "bundled"})


class Length(WordOverlapScorer):
    """Finds longer passages better, on a scale of its own."""

    name = "length"

    def score(self, query, passages):
        self.calls += 1
        return [100.0 * len(passage) for passage in passages]


class TimesOut(WordOverlapScorer):
    """A model that fails because of its time limit."""

    name = "slow"

    def score(self, query, passages):
        raise RerankTimeoutError("The call took longer than 1 s.")


async def test_a_cascade_ranks_as_the_core_and_says_who_read_what(adapter):
    """What only the skimming model read comes last, with its name, and without a number of another scale."""
    scores = [0.9, 0.4, 0.3, 0.2, 0.15, 0.1]
    rerank = adapter.with_overlap(skim=Length(), skim_keep=2, top_n=None)
    found = adapter.rerank(rerank, adapter.with_scores(TEXTS, scores), QUERY)
    assert await adapter.arerank(rerank, adapter.with_scores(TEXTS, scores), QUERY) == found
    expected = Reranker(word_overlap(), skim=Length(), skim_keep=2).rank(QUERY, TEXTS, retrieval_scores=scores)
    assert adapter.indexes(found) == [result.index for result in expected]
    assert [adapter.score(one) for one in found] == [result.score for result in expected] == [5.0, -5.0, *[None] * 4]
    names = [adapter.metadata(one).get("scored_by") for one in found]
    assert names == [None, None, *["length"] * 4]
    plain = adapter.rerank(adapter.with_overlap(top_n=None), found, QUERY)
    assert all("scored_by" not in adapter.metadata(one) for one in plain)
    unwritten = adapter.with_overlap(skim=Length(), skim_keep=2, top_n=None, write_metadata=False)
    assert all("scored_by" not in one.metadata for one in adapter.rerank(unwritten, adapter.items(TEXTS), QUERY))


def test_after_a_timeout_the_order_of_the_skimming_model_has_no_scores(adapter):
    """The results say so as after any failure, and no score of an earlier stage passes for one of this stage."""
    rerank = adapter.make(reranker=TimesOut(), skim=Length(), skim_keep=4, timeout_s=60)
    found = adapter.rerank(rerank, adapter.items(TEXTS), QUERY)
    assert adapter.indexes(found) == [1, 0, 4]
    assert [adapter.score(one) for one in found] == [None] * 3
    metadata = adapter.metadata(found[0])
    assert (metadata["rerank_outcome"], metadata["rerank_error"]) == ("skim", "RerankTimeoutError")
    assert metadata["scored_by"] == "length"


def test_blend_goes_by_the_scores_that_the_items_came_with(adapter):
    """The order and the blended scores are those of the core; scores stay those of the model."""
    texts, scores = ["red", "red apple", "pear"], [0.9, 0.2, 0.1]
    found = adapter.rerank(adapter.with_overlap(blend=0.7), adapter.with_scores(texts, scores), "red apple")
    expected = Reranker(word_overlap(), blend=0.7).rank("red apple", texts, retrieval_scores=scores)
    assert adapter.indexes(found) == [result.index for result in expected] == [0, 1, 2]
    assert adapter.scores(found) == [result.score for result in expected]
    blended = [adapter.metadata(one)["blended_score"] for one in found]
    assert blended == [result.blended_score for result in expected]
    # A second stage goes by the scores of the first stage again, and leaves nothing of the other behind.
    kept = adapter.rerank(adapter.with_overlap(**adapter.keeping), adapter.with_scores(texts, scores), "red apple")
    again = adapter.rerank(adapter.with_overlap(blend=0.7), kept, "red apple")
    assert adapter.indexes(again) == [0, 1, 2]
    plain = adapter.rerank(adapter.with_overlap(), found, "red apple")
    assert all("blended_score" not in adapter.metadata(one) for one in plain)


@pytest.mark.parametrize("missing", [None, float("nan"), "high"])
def test_blend_goes_by_positions_where_a_score_is_missing(adapter, missing):
    """One item without a usable score, and the order of all of them counts."""
    texts = ["red", "red apple", "pear"]
    items = adapter.with_scores(texts, [0.9, missing, 0.1])
    found = adapter.rerank(adapter.with_overlap(blend=0.9), items, "red apple")
    expected = Reranker(word_overlap(), blend=0.9).rank("red apple", texts)
    assert [adapter.metadata(one)["blended_score"] for one in found] == [one.blended_score for one in expected]
    assert adapter.indexes(found) == [one.index for one in expected]


def test_near_duplicates_make_room_for_the_next(adapter):
    """`top_n` items come back, without the near-copy."""
    texts = ["the red apple is on the table", "The red  apple is on the table", "a red car", "pear"]
    found = adapter.rerank(adapter.with_overlap(max_similarity=0.8, top_n=2), adapter.items(texts), "red apple")
    assert adapter.indexes(found) == [0, 2]


def test_a_ranking_ends_at_a_drop(adapter):
    """Only with a fitted activation; the limits are checked together."""
    texts = ["red apple", "red", "pear"]
    fitted = {"activation": Logistic(1, 0), "max_drop": 0.3}
    assert adapter.indexes(adapter.rerank(adapter.with_overlap(**fitted), adapter.items(texts), "red apple")) == [0]
    longer = adapter.with_overlap(**fitted, min_n=2)
    assert adapter.indexes(adapter.rerank(longer, adapter.items(texts), "red apple")) == [0, 1]
    with pytest.raises(ValidationError, match=r"`max_drop` is 0\.3 .* not calibrated"):
        adapter.make(max_drop=0.3)


@pytest.mark.parametrize(
    ("settings", "name", "value", "message"),
    [
        ({"skim": "bundled", "skim_keep": 3}, "top_n", 4, "`top_n` is 4 and `skim_keep` 3; expected at least as many"),
        ({"skim": "bundled", "top_n": 5}, "skim_keep", 4, "`top_n` is 5 and `skim_keep` 4; expected"),
        (
            {"activation": Logistic(1, 0), "max_drop": 0.1, "top_n": 2},
            "min_n",
            3,
            "`min_n` is 3 and `top_n` 2; expected a minimum number",
        ),
    ],
)
def test_options_are_checked_together_at_once(adapter, settings, name, value, message):
    """Also when one of them changes, and what it was stays."""
    with pytest.raises(ValidationError, match=message):
        adapter.make(model="bundled", **settings, **{name: value})
    rerank = adapter.make(model="bundled", **settings)
    before, core = adapter.plain(rerank), rerank.core
    with pytest.raises(InvalidInputError, match=message):
        setattr(rerank, name, value)
    with pytest.raises(InvalidInputError, match=message):
        rerank.model_copy(update={name: value})
    assert adapter.plain(rerank) == before
    assert rerank.core is core
