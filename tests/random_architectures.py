"""Small random cross-encoders of every architecture that transformers has, with a tokenizer of the family's kind."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from random_models import LOGIT_STD, QUERY, WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Tokens that a model takes, including the special ones. It has more positions, since some families start late.
MAX_LENGTH = 64
_POSITIONS = MAX_LENGTH + 8
# What the sizes in a config are called, and what each becomes.
_SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_kv_heads "
    "num_key_value_heads num_self_attention_heads num_cross_attention_heads num_self_attends_per_block "
    "num_feedforward_networks n_mamba_heads n_group topk_group num_experts_per_tok",
    4: "num_experts num_local_experts n_routed_experts num_buckets",
    8: "num_latents rotary_dim adapter_rank",
    16: "head_dim d_kv d_head attention_head_size qk_rope_head_dim qk_nope_head_dim v_head_dim kv_channels "
    "kv_lora_rank q_lora_rank intra_bottleneck_size entity_vocab_size entity_emb_size mamba_d_state chunk_size "
    "sliding_window attention_window local_attention window_size lsh_attn_chunk_length local_attn_chunk_length",
    32: "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim d_latents",
    64: "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff d_inner n_inner hidden_dim ffn_dim dff "
    "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size feed_forward_size",
    _POSITIONS: "max_position_embeddings n_positions max_seq_len",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
# What else a family needs.
_OPTIONS: dict[str, dict[str, Any]] = {
    # Sparse attention needs longer sequences.
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "mistral4": {"head_dim": 32},
    # Their logits would be far from 0 and close to each other, and rounding would be scaled with them.
    "modernbert": {"initializer_range": 0.3},
    "roberta": {"initializer_range": 0.3},
    "mra": {"max_position_embeddings": 128},
    "qwen3_5_text": {"layer_types": _LINEAR_AND_FULL},
    "qwen3_next": {"layer_types": _LINEAR_AND_FULL},
    # Attention by hashing scores at random.
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
}
# For families whose own tokenizer transformers does not name, or does not make with the `tokenizers` library.
_TOKENIZERS = {
    "bigbird_pegasus": "T5Tokenizer",
    "biogpt": "RobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "canine": "BertTokenizer",
    "ctrl": "GPT2Tokenizer",
    "esm": "BertTokenizer",
    "esmc": "BertTokenizer",
    "flaubert": "XLMRobertaTokenizer",
    "layoutlmv2": "BertTokenizer",
    "layoutlmv3": "RobertaTokenizer",
    "llama": "LlamaTokenizer",
    "markuplm": "RobertaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "modernbert": "DebertaTokenizer",
    "nystromformer": "AlbertTokenizer",
    "perceiver": "BertTokenizer",
    "phi3": "LlamaTokenizer",
    "plbart": "MBartTokenizer",
    "roc_bert": "BertTokenizer",
    "roformer": "BertTokenizer",
    "tapas": "BertTokenizer",
    "umt5": "T5Tokenizer",
    "xlm": "XLMRobertaTokenizer",
    "xlm-roberta-xl": "XLMRobertaTokenizer",
}
_ANY_OTHER = "GPTNeoXTokenizer"
# One reads tables, the other one scores on a GPU alone.
NOT_FOR_TEXTS = frozenset({"tapas", "mra"})
_CORPUS = (QUERY, " ".join(WORDS), " ".join(reversed(WORDS)), "abcdefghijklmnopqrstuvwxyz ?.,")


def model_types() -> list[str]:
    """Return all that the installed transformers has for sequence classification, without importing it."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return []
    source = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES" in ast.unparse(statement).split(" = ")[0]:
            return [pair[0] for pair in ast.literal_eval(statement.value.args[0])]
    raise LookupError(f"{source} has no mapping for sequence classification")


def random_model(model_type: str, folder: Path, *, tokenizer_of: str | None = None, **options: Any) -> Path:
    """Save a random cross-encoder whose logits spread like real ones.

    Args:
        model_type: As in the config of a model.
        folder: Where to.
        tokenizer_of: The family whose tokenizer it gets; its own by default.
        options: Fields of its config.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    limit = options.get("max_position_embeddings", MAX_LENGTH)
    tokenizer = make_tokenizer(tokenizer_of or model_type, limit)
    model = AutoModelForSequenceClassification.from_config(make_config(model_type, tokenizer, **options)).eval()
    if model_type not in NOT_FOR_TEXTS:
        _spread_logits(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_config(model_type: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedConfig:
    """Return a small config of a family, with one label."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(model_type)
    config = type(default)(**_small_fields(default, tokenizer) | options)
    config.num_labels = 1
    return config


def _small_fields(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    fields = config.to_dict()
    ours: dict[str, Any] = {**_SIZE_OF, "vocab_size": len(tokenizer)}
    # Wider than a start of training, so that the texts matter to the logits as they do after it.
    ours |= {"initializer_range": 0.1, "init_std": 0.1}
    ours |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    small = {name: value for name, value in ours.items() if name in fields}
    small["pad_token_id"] = tokenizer.pad_token_id
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            small[name] = _small_fields(getattr(config, name), tokenizer)
    return small | _OPTIONS.get(config.model_type, {})


def make_tokenizer(model_type: str, limit: int = MAX_LENGTH) -> PreTrainedTokenizerBase:
    """Return a small tokenizer with the special tokens and pairs of a family."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    name = _TOKENIZERS.get(model_type) or TOKENIZER_MAPPING_NAMES.get(model_type)
    kind = None if name is None else tokenizer_class_from_name(name)
    if model_type not in _TOKENIZERS and getattr(kind, "model", None) is None:
        kind = tokenizer_class_from_name(_ANY_OTHER)
    tokenizer = kind().train_new_from_iterator(_CORPUS, 300, show_progress=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model_type == "modernbert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    tokenizer.model_max_length = limit
    return tokenizer


def _spread_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    import torch

    with torch.inference_mode():
        pairs = [
            tokenizer(QUERY, text, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt")
            for text in mixed_texts()
        ]
        scale = LOGIT_STD / float(np.std([model(**pair).logits.item() for pair in pairs]))
        for parameter in _output_layer(model):
            parameter.mul_(scale)


def _output_layer(model: PreTrainedModel) -> list[Any]:
    """Return the parameters of the layer with the single output."""
    single = {name: values for name, values in model.named_parameters() if values.shape[:1] == (1,) and values.ndim < 3}
    head = [values for name, values in single.items() if not name.startswith(f"{model.base_model_prefix}.")]
    # Perceiver has it in its decoder.
    return head or list(single.values())[-2:]


def mixed_texts(longest: int = 90) -> list[str]:
    """Return short and long passages, blanks, Unicode and control characters."""
    rng = np.random.default_rng(1)
    counts = [*rng.integers(1, longest, size=7).tolist(), longest]
    words = [" ".join(rng.choice(WORDS, size=count)) for count in counts]
    return [
        *words,
        "",
        " ",
        "\t\n",
        "Berlín 柏林 Берлин — naïve “quotes” 🏙️ e\u0301 \u200b",
        "\x00 control",
        "BERLIN, Berlin.",
    ]


def texts_with_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return passages in which special tokens are written out; as many ends in each, as some families require."""
    end = tokenizer.sep_token or tokenizer.eos_token or tokenizer.unk_token
    others = [
        token for token in (tokenizer.cls_token, tokenizer.mask_token, tokenizer.unk_token) if token and token != end
    ]
    texts = [f"museum {end} river", end, f"{end}wall", *(f"berlin {token} {end}" for token in others)]
    return (texts * 2)[:6]


def random_modular(
    model_type: str,
    folder: Path,
    *,
    pooling: str | tuple[str, ...] = "cls",
    activation: str | None = "GELU",
) -> Path:
    """Save a cross-encoder of modules: an encoder, pooling, and a layer with one score.

    An activation adds another layer before it, and a norm between the two.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
    from transformers import AutoModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer(model_type)
    encoder = folder / "encoder"
    AutoModel.from_config(make_config(model_type, tokenizer)).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    transformer = Transformer(str(encoder))
    width = transformer.get_embedding_dimension()
    pooled = Pooling(width, pooling)
    middle: list[Any] = []
    if activation is not None:
        dense = Dense(pooled.pooling_output_dimension, width, activation_function=getattr(torch.nn, activation)())
        middle = [dense, LayerNorm(width)]
    score = Dense(
        width if middle else pooled.pooling_output_dimension,
        1,
        activation_function=torch.nn.Identity(),
        module_output_name="scores",
    )
    model = CrossEncoder(modules=[transformer, pooled, *middle, score], device="cpu")
    pairs = [(QUERY, text) for text in mixed_texts()]
    logits = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    with torch.no_grad():
        score.linear.weight.mul_(LOGIT_STD / float(np.std(logits)))
    model.save_pretrained(str(folder))
    return folder


def random_logit_score(folder: Path, *, chat_template: str | None = None) -> Path:
    """Save a language model that scores a pair by how much rather it says yes than no, as Qwen3-Reranker does."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer("qwen3", limit=512)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.chat_template = chat_template
    config = make_config("qwen3", tokenizer, tie_word_embeddings=False, max_position_embeddings=512)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    start = folder / "start"
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    CrossEncoder(str(start), device="cpu").save_pretrained(str(folder))
    return folder
