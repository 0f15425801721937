"""What Hugging Face's towers have in common, and BERT, which OpenCLIP's models have, too."""

from pathlib import Path
from typing import Any

from jaxclip.data.text import TokenizerConfig
from jaxclip.models.bert import BertConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained.family import block_count, check_sizes, first_existing, lookup
from jaxclip.models.pretrained.files import Weights, read_json

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# What config.json leaves out: the defaults of the class (transformers 5.23).
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
         "num_attention_heads": 12}  # fmt: skip
_CLIP = _BASE | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = _BASE | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 16}
_BERT = _BASE | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
_SIGLIP_TEXT = _SIGLIP | {"vocab_size": 32_000, "max_position_embeddings": 64}
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_text": _CLIP | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
                          "vocab_size": 49_408, "max_position_embeddings": 77,
                          "eos_token_id": 49_407, "projection_dim": 512},
    "clip_vision": _CLIP | {"image_size": 224, "patch_size": 32, "projection_dim": 512},
    "siglip_text": _SIGLIP_TEXT,
    "siglip_vision": _SIGLIP | {"image_size": 224},
    "siglip2_text": _SIGLIP_TEXT,
    "siglip2_vision": _SIGLIP | {"num_patches": 256},
    "bert": _BERT | {"vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2},
    "vit": _BERT | {"image_size": 224, "patch_size": 16},
}  # fmt: skip


def transformer(config: dict[str, Any], weights: Weights, blocks: str, up: str):
    """As the config has it, and the tensors; raises ValueError where they differ.

    Args:
      blocks: names of the blocks' tensors begin with this and a number.
      up: name, in a block, of the first matrix of its MLP.
    """
    depth = block_count(weights, blocks)
    hidden, width = weights.shape(f"{blocks}0.{up}")
    found = {"num_hidden_layers": depth, "hidden_size": width, "intermediate_size": hidden}
    check_sizes("", config, found)
    return TransformerConfig(
        width=width,
        depth=depth,
        num_heads=config["num_attention_heads"],
        mlp_width=0 if hidden == 4 * width else hidden,
        activation=lookup(config, "hidden_act", "gelu", ACTIVATIONS),
        norm_epsilon=config["layer_norm_eps"],
    )


def bert_tower(
    weights: Weights, config: dict[str, Any], start: str = "", folder: Path | None = None
) -> tuple[BertConfig, int]:
    """The tower and the size of its vocabulary; names begin with `start`.

    Args:
      config: of the fields of DEFAULTS["bert"] at least what shapes do not tell.
    """
    embeddings = f"{start}embeddings."
    t = transformer(config, weights, f"{start}encoder.layer.", "intermediate.dense.weight")
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    rows = [weights.shape(f"{embeddings}{table}.weight")[0] for table in tables]
    sizes = ("vocab_size", "max_position_embeddings", "type_vocab_size")
    check_sizes("", config, dict(zip(sizes, rows, strict=True)))
    tower = BertConfig(transformer=t, max_positions=rows[1], token_types=rows[2])
    pooling = first_existing(folder, "1_Pooling/config.json")
    if pooling and read_json(Path(pooling)).get("pooling_mode_mean_tokens"):
        tower.pool = "mean"  # sentence-transformers
    return tower, rows[0]


def bert_tokenizer(
    folder: Path | None, context_length: int, clean: str = "auto"
) -> TokenizerConfig:
    sentence = first_existing(folder, "sentence_bert_config.json")
    if sentence:
        context_length = read_json(Path(sentence)).get("max_seq_length", context_length)
    path = first_existing(folder, "tokenizer.json", "vocab.txt")
    return TokenizerConfig(path=path, context_length=context_length, clean=clean)
