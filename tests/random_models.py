"""Cross-encoders with random weights in the shapes of real ones, made where no real weights are at hand."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import BertConfig, PreTrainedModel

QUERY = "how many people live in Berlin?"
WORDS = tuple(
    "berlin has a population of three million registered inhabitants museum river spree capital city germany "  # noqa: SIM905
    "history people live count statistics office wall europe the of and in to is was for on as by with".split()
)
# Logits of the MS MARCO models spread about this far.
LOGIT_STD = 4.0
# sentence-transformers pads each of its batches, which are of similar length, to its longest text.
BATCH_SIZE = 4


class Shape(NamedTuple):
    """What makes a BERT small or large."""

    layers: int
    hidden: int
    heads: int
    intermediate: int


TINYBERT_L2 = Shape(2, 128, 2, 512)
MINILM_L6 = Shape(6, 384, 12, 1536)
MINILM_L12 = Shape(12, 384, 12, 1536)
SMALL = Shape(2, 32, 2, 64)


def passages(count: int = 20, seed: int = 0) -> list[str]:
    """Texts of mixed length, odd Unicode, blanks and one of 2,000 words among them."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=int(size))) for size in rng.integers(1, 300, size=count)]
    return [
        *texts,
        "",
        "   ",
        "Berlín 柏林 ベルリン 베를린 Берлин برلين — naïve “quotes” 🏙️👩‍👩‍👧 e\u0301 \u200b\ufeff",
        "\x00\t\r\n control",
        " ".join(rng.choice(WORDS, size=2000)),
    ]


def _bert_config(shape: Shape, **options: Any) -> BertConfig:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=30522,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        # Wider than BERT's own start, so that the texts matter to the logits as they do after training.
        initializer_range=0.1,
        **options,
    )


def bert(folder: Path, shape: Shape = SMALL, *, labels: int = 1, seed: int = 0) -> Path:
    """Save a random BERT cross-encoder whose logits spread like real ones; with the bundled tokenizer."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    activation = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = BertForSequenceClassification(_bert_config(shape, num_labels=labels, sentence_transformers=activation))
    save(model, folder)
    if labels == 1:
        _spread_logits(model, model.classifier, folder)
    return folder


def bi_encoder(folder: Path, shape: Shape = SMALL, *, seed: int = 0) -> Path:
    """Save a small random BERT without an output layer, as bi-encoders are; with the bundled tokenizer."""
    import torch
    from transformers import BertModel

    torch.manual_seed(seed)
    save(BertModel(_bert_config(shape)), folder)
    return folder


def masked_language_model(folder: Path, shape: Shape = SMALL, *, seed: int = 0) -> Path:
    """Save a small random BERT with a masked-language head, as SPLADE models have one; with the bundled tokenizer."""
    import torch
    from transformers import BertForMaskedLM

    torch.manual_seed(seed)
    save(BertForMaskedLM(_bert_config(shape)), folder)
    return folder


def modular(
    folder: Path,
    *,
    shape: Shape = SMALL,
    pooling: str | tuple[str, ...] = "cls",
    include_prompt: bool = True,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Save a BERT cross-encoder made of modules: pooling, a layer with GELU, a norm and a layer with one score.

    Options are passed to `CrossEncoder`, such as `prompts`.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    start = bi_encoder(folder / "start", shape, seed=seed)
    pooled = Pooling(shape.hidden, pooling, include_prompt=include_prompt)
    width = shape.hidden
    score = Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    modules = [
        Transformer(str(start)),
        pooled,
        Dense(pooled.pooling_output_dimension, width, activation_function=torch.nn.GELU()),
        LayerNorm(width),
        score,
    ]
    model = CrossEncoder(modules=modules, device="cpu", **options)
    pairs = [(QUERY, text) for text in passages()]
    logits = model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=BATCH_SIZE)
    with torch.no_grad():
        score.linear.weight.mul_(LOGIT_STD / float(np.std(logits)))
    model.save_pretrained(str(folder))
    shutil.rmtree(start)
    return folder


def export_encoder(folder: Path) -> Path:
    """Write `onnx/model.onnx` as hub folders of modular cross-encoders have it: the encoder alone."""
    import torch
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")}
    (folder / "onnx").mkdir(exist_ok=True)
    ids = torch.arange(32).reshape(2, 16) + 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Hidden().eval(),
            (ids, torch.ones_like(ids), torch.zeros_like(ids)),
            str(folder / "onnx/model.onnx"),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return folder


# Narrower than the bi-encoder, as in the bundled model.
NARROW_SPLADE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


def splade(folder: Path, shape: Shape = SMALL) -> Path:
    """Save a random SPLADE model that gives about half of all terms a weight."""
    import torch
    from transformers import BertForMaskedLM

    masked_language_model(folder, shape)
    model = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.cls.predictions.bias.uniform_(-1, 1)
    model.save_pretrained(folder)
    return folder


def interaction(folder: Path, *, seed: int = 0) -> Path:
    """Save a cross-encoder of `marcorank.interaction` on a small bi-encoder, with every part of it in use."""
    import torch

    from marcorank.interaction import InteractionBertConfig, InteractionBertForSequenceClassification

    start = bi_encoder(folder / "start", seed=seed)
    config = InteractionBertConfig.from_pretrained(start, num_labels=1, splade=NARROW_SPLADE)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = InteractionBertForSequenceClassification.from_pretrained(start, config=config)
    with torch.no_grad():
        model.gates.normal_()
        model.classifier.weight.normal_()
        model.word_weights.weight.uniform_()
        # Without a bias, the weights of a random model's terms are very small.
        model.splade.bias.uniform_(-1, 1)
    save(model, folder)
    _spread_logits(model, model.classifier, folder)
    shutil.rmtree(start)
    return folder


def splade_reranker(folder: Path, start: Path) -> Path:
    """Save a cross-encoder of `marcorank.interaction` on a SPLADE model."""
    import torch
    from transformers import BertForMaskedLM

    from marcorank.interaction import SpladeBertConfig, SpladeBertForSequenceClassification

    config = SpladeBertConfig.from_pretrained(start, num_labels=1)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = SpladeBertForSequenceClassification(config)
    model.splade.copy_from(BertForMaskedLM.from_pretrained(start, dtype=torch.float32))
    save(model, folder)
    _spread_logits(model, model.similarities, folder)
    return folder


def roberta(folder: Path, *, family: str = "Roberta", seed: int = 0) -> Path:
    """Save a random RoBERTa cross-encoder: one segment, positions that start behind the padding's id.

    Other families that have its tokenizer are named as transformers names them.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    torch.manual_seed(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([QUERY, " ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    settings: dict[str, Any] = {"max_position_embeddings": 130, "type_vocab_size": 1, **_OF_FAMILY.get(family, {})}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
        initializer_range=0.1,
        pad_token_id=1,
        **settings,
    )
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    save(model, folder, tokenizer_json=tokenizer.to_str())
    special: dict[str, Any] = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    special |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    special["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128})
    )
    _spread_logits(model, model.score if family == "GPT2" else model.classifier.out_proj, folder)
    return folder


_OF_FAMILY: dict[str, dict[str, Any]] = {
    "Longformer": {"attention_window": [8, 8]},
    "Esm": {"mask_token_id": 4, "token_dropout": False},
    "GPT2": {"max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 2},
}


def save(model: PreTrainedModel, folder: Path, *, tokenizer_json: str | None = None) -> None:
    """Write weights, config and tokenizer as the hub has them."""
    model.save_pretrained(folder)
    if tokenizer_json is None:
        shutil.copyfile(bundled_folder() / "tokenizer.json", folder / "tokenizer.json")
        settings: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        (folder / "tokenizer.json").write_text(tokenizer_json)


def with_weights_beside(source: Path, folder: Path, *locations: str) -> Path:
    """Copy a model with an ONNX file, whose weights are put into files beside it, as those of large models are."""
    import onnx
    from onnx.external_data_helper import set_external_data

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.onnx"))
    model = onnx.load(source / "onnx/model.onnx")
    (folder / "onnx").mkdir(exist_ok=True)
    tensors = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1000]
    for number, tensor in enumerate(tensors):
        location = locations[number % len(locations)]
        file = folder / "onnx" / location
        file.parent.mkdir(exist_ok=True)
        with file.open("ab") as weights:
            set_external_data(tensor, location, offset=weights.tell(), length=len(tensor.raw_data))
            weights.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    (folder / "onnx/model.onnx").write_bytes(model.SerializeToString())
    return folder


def bundled_folder() -> Path:
    """Folder of the model in the wheel."""
    return Path(str(files("marcorank") / "bundled"))


def predict(folder: Path, query: str, texts: list[str]) -> np.ndarray:
    """Logits by sentence-transformers itself: the reference for parity."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    pairs = [(query, text) for text in texts]
    scores = model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=BATCH_SIZE, show_progress_bar=False)
    return np.asarray(scores)


def _spread_logits(model: Any, output_layer: Any, folder: Path) -> None:
    import torch

    logits = predict(folder, QUERY, passages())
    scale = LOGIT_STD / float(np.std(logits))
    with torch.no_grad():
        output_layer.weight.mul_(scale)
    model.save_pretrained(folder)


def bundled_in_fp32(folder: Path) -> Path:
    """Save the weights in the wheel as an fp32 model: what its int8 numbers stand for."""
    import onnx
    import torch
    from onnx import numpy_helper

    from marcorank.interaction import InteractionBertConfig, InteractionBertForSequenceClassification

    graph = onnx.load(bundled_folder() / "onnx/model_int8.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: value for name, value in tensors.items() if name.startswith("model.") and "/" not in name}
    for name, stored in tensors.items():
        prefix, _, kind = name.rpartition("/")
        if kind == "codes":
            pairs = np.take_along_axis(tensors[f"{prefix}/pairs"].reshape(-1, 256, 2), stored.T[:, :, None], 1)
            weights[prefix] = pairs.transpose(1, 0, 2).reshape(len(stored), -1)
        elif kind == "scales":
            weights[f"{_layer_of_product(prefix)}.weight"] = (tensors[f"{prefix}/weights"] * stored).T
    config = InteractionBertConfig.from_pretrained(bundled_folder())
    config.dtype = "float32"
    # One constant for each layer and direction, numbered in the order of the graph.
    gates = {name: value for name, value in tensors.items() if value.shape == (config.num_attention_heads, 1, 1)}
    in_order = sorted(gates, key=lambda name: int(re.findall(r"\d+", name)[0]))
    weights["gates"] = np.stack([gates[name] for name in in_order]).reshape(config.num_hidden_layers, 2, -1)
    model = InteractionBertForSequenceClassification(config)
    state = {name.removeprefix("model."): torch.from_numpy(np.array(value)) for name, value in weights.items()}
    model.load_state_dict(state, strict=True)
    save(model, folder)
    return folder


def _layer_of_product(name: str) -> str:
    """Return which layer a product such as `/model/dense_4/MatMul_output_0` is of: they are numbered as they run.

    Only those of SPLADE are named in full.
    """
    if name == "/model/splade/MatMul_output_0":
        return "splade.bert.embeddings.word_embeddings"
    if name.startswith("/model/splade/"):
        return ".".join(name.split("/")[2:-1])
    kind, _, number = name.split("/")[2].partition("_")
    if kind != "dense":
        return f"bert.encoder.layer.{number or 0}.attention.self.{kind}"
    layer, place = divmod(int(number or 0), 3)
    part = ("attention.output.dense", "intermediate.dense", "output.dense")[place]
    return f"bert.encoder.layer.{layer}.{part}"
