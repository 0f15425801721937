"""OpenCLIP's text towers, its own and BERT, with their tokenizers."""

from pathlib import Path
from typing import Any

from jaxclip.data.text import TokenizerConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained.family import (
    block_count,
    check_sizes,
    first_existing,
    lookup,
    special_tokens,
)
from jaxclip.models.pretrained.files import Weights, read_json
from jaxclip.models.pretrained.huggingface_towers import DEFAULTS as HUGGINGFACE
from jaxclip.models.pretrained.huggingface_towers import bert_tokenizer, bert_tower
from jaxclip.models.text import TextConfig

PMC_CLIP_ONLY = "text.proj"  # a bare matrix, after renaming
# what a text_cfg leaves out (CLIPTextCfg)
DEFAULTS: dict[str, Any] = {
    "context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8, "layers": 12,
    "eos_id": 2, "pad_id": 0, "pool_type": "argmax", "proj_type": "linear",
}  # fmt: skip
# what a file without config is taken for where its image tower is SigLIP's
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
          "tokenizer_kwargs": {"clean": "canonicalize"}}  # fmt: skip
POOLS = {"argmax": "eot", "eos": "eot", "last": "last", "first": "first"}
BERT_POOLS = {"cls_last_hidden_state_pooler": "first", "mean_pooler": "mean"}
# tokenizer_kwargs.clean -> vocabulary.CLEANERS
CLEANERS = {"canonicalize": "openclip_canonical", "whitespace": "openclip_whitespace",
            "lower": "clip"}  # fmt: skip

Described = tuple[dict[str, Any], dict[str, Any]]  # fields of ClipConfig, and of Family


def describe_text(
    weights: Weights,
    config: dict[str, Any] | None,
    *,
    start: str,
    quick_gelu: bool,
    folder: Path | None,
    is_siglip: bool,
) -> Described:
    """A text tower.

    Args:
      config: text_cfg; None: there is none.
      start: of the names: "text." or "".
      is_siglip: the image tower is SigLIP's: so is the text tower, where no config says otherwise.
    """
    if any(name.startswith(f"{start}transformer.embeddings.") for name in weights):
        return _describe_bert(weights, config or {}, start, folder)
    length, D = weights.shape(f"{start}positional_embedding")
    vocab_size = weights.shape(f"{start}token_embedding.weight")[0]
    depth = block_count(weights, f"{start}transformer.resblocks.")
    hidden = weights.shape(f"{start}transformer.resblocks.0.mlp.c_fc.weight")[0]
    found = {"width": D, "layers": depth, "vocab_size": vocab_size, "context_length": length}
    if config is None:
        has_projection = any(name.startswith(f"{start}text_projection") for name in weights)
        usual = {"heads": 16 if D == 1152 else max(1, D // 64),
                 "proj_type": "linear" if has_projection else "none"}  # fmt: skip
        config = found | usual | (SIGLIP if is_siglip else {})
    text = DEFAULTS | config
    check_sizes("text_cfg.", text, found)
    transformer = TransformerConfig(
        width=D,
        depth=depth,
        num_heads=text["heads"],
        mlp_width=0 if hidden == 4 * D else hidden,
        activation=activation(text, quick_gelu),
        norm_epsilon=epsilon(text),
    )
    is_causal, pool = not text.get("no_causal_mask", False), lookup(text, "pool_type", "", POOLS)
    has_bias = text.get("proj_bias", f"{start}text_projection.bias" in weights)
    fields = {
        "text": TextConfig(transformer=transformer, is_causal=is_causal, pool=pool),
        "text_projection": text["proj_type"],
        "projection_bias": has_bias and text["proj_type"] == "linear",
    }
    return fields, _tokenizer(text, folder, vocab_size) | {"vocab_size": vocab_size}


def activation(config: dict[str, Any], quick_gelu: bool) -> str:
    """Of OpenCLIP's own towers."""
    is_tanh = (config.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "quick_gelu" if quick_gelu else "gelu_tanh" if is_tanh else "gelu"


def epsilon(config: dict[str, Any]) -> float:
    return (config.get("norm_kwargs") or {}).get("eps", 1e-5)


def _clean(config: dict[str, Any]) -> str:
    return lookup(config.get("tokenizer_kwargs") or {}, "clean", "whitespace", CLEANERS)


def _tokenizer(text: dict[str, Any], folder: Path | None, vocab_size: int) -> dict[str, Any]:
    """Fields of Family: the tokenizer, and the ids that the tower looks at."""
    length = text["context_length"]
    eos_id = text["eos_id"] if text["pool_type"] == "eos" else vocab_size - 1
    if text.get("no_causal_mask") and text["pool_type"] == "last":  # SigLIP
        is_gemma = vocab_size == 256_000
        usual = {"eos": "<eos>", "pad": "<pad>"} if is_gemma else {"eos": "</s>", "pad": "</s>"}
        path = first_existing(folder, "tokenizer.json", "spiece.model", "tokenizer.model")
        special = {"bos": ""} | usual | special_tokens(folder)
        ids = {"eos_id": 1, "pad_id": 0 if is_gemma else 1}
        return {"tokenizer": TokenizerConfig(path=path, context_length=length, clean=_clean(text),
                                             **special)} | ids  # fmt: skip
    ids = {"eos_id": eos_id, "pad_id": text["pad_id"]}
    if text.get("hf_tokenizer_name"):
        path = first_existing(folder, "tokenizer.json", "vocab.txt")
        return {"tokenizer": TokenizerConfig(path=path, context_length=length, clean=_clean(text),
                                             **special_tokens(folder))} | ids  # fmt: skip
    path = first_existing(folder, "bpe_simple_vocab_16e6.txt.gz", "tokenizer.json")
    if not path.endswith(".json"):
        return {"tokenizer": TokenizerConfig(path=path, context_length=length)} | ids
    # CLIP's in Hugging Face's form; OpenCLIP's own tokenizer cleans the text and pads with id 0
    special = special_tokens(folder) | ({"pad": "!"} if vocab_size == 49_408 else {})
    return {"tokenizer": TokenizerConfig(path=path, context_length=length, clean="clip",
                                         **special)} | ids  # fmt: skip


def _describe_bert(
    weights: Weights, config: dict[str, Any], start: str, folder: Path | None
) -> Described:
    bert = _bert_config(weights, start, folder)
    tower, vocab_size = bert_tower(weights, bert, f"{start}transformer.")
    is_pmc_clip = PMC_CLIP_ONLY in weights  # it gives BERT no attention mask
    tower.mask_padding = not is_pmc_clip
    is_said = "hf_model_name" in config
    pool = "mean_pooler" if is_said else "cls_last_hidden_state_pooler"
    tower.pool = lookup(config, "hf_pooler_type", pool, BERT_POOLS)
    if is_said:  # "mlp" is the default of CLIPTextCfg
        projection = config.get("hf_proj_type", "mlp") or "none"
    else:
        kinds = {"proj.0.weight": "mlp", "proj.weight": "linear", "proj": "linear"}
        projection = next((kind for n, kind in kinds.items() if start + n in weights), "none")
    length = min(tower.max_positions, config.get("context_length", 77 if is_pmc_clip else 256))
    return {"text": tower, "text_projection": projection}, {
        "tokenizer": bert_tokenizer(folder, length, _clean(config)),
        "vocab_size": vocab_size,
        "pad_id": bert.get("pad_token_id", 0),
        "eos_id": -1,
    }


def _bert_config(weights: Weights, start: str, folder: Path | None) -> dict[str, Any]:
    """config.json, if it is a BERT's, as in what we export; else what such towers have."""
    file = first_existing(folder, "config.json")
    config = read_json(Path(file)) if file else {}
    if config.get("model_type") == "bert":
        return HUGGINGFACE["bert"] | config
    width = weights.shape(f"{start}transformer.embeddings.word_embeddings.weight")[1]
    return {"num_attention_heads": max(1, width // 64), "hidden_act": "gelu",
            "layer_norm_eps": 1e-12}  # fmt: skip
