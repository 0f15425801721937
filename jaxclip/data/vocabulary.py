"""Vocabulary files of the four kinds behind one interface, and the cleaning that goes with each.

    vocabulary = open_vocabulary("clip", content_of_the_file)
    vocabulary.encode(CLEANERS[vocabulary.clean]("A cat"))  # [320, 2368]

A cleaner or vocabulary that works word by word lets jaxclip.data.text keep the ids of words.
"""

import dataclasses
import gzip
import html
import json
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

# OpenAI CLIP's words: contractions, letters, single digits, punctuation. White space is dropped.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_NUM_MERGES = 48_894  # of the file's lines, those that OpenAI uses: 49,408 - 2 * 256 bytes - 2


@dataclasses.dataclass(slots=True, kw_only=True)
class Vocabulary:
    encode: Callable[[str], list[int]]  # ids of a clean text, without special tokens
    decode: Callable[[list[int]], str]
    token_id: Callable[[str], int | None]
    size: int  # every id is below
    clean: str = "none"  # a key of CLEANERS
    bos: str = ""  # token to put first, "" for none
    eos: str = ""  # token to put last, "" if the file does not say
    pad: str = ""  # token to fill up with, "" if the file does not say
    word_by_word: bool = False  # encode(a + " " + b) == encode(a) + encode(b) for certain


# Each cleans word by word: the clean of a text is the cleans of what lies between its spaces.


def _fold_table() -> dict[int, str | None]:
    """What ftfy.fix_text changes in well-encoded text: widths, ligatures, control, quotes."""
    change = [0x3000, *range(0xFF01, 0xFFF0)]
    change += [0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07)]
    drop = [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF]
    table: dict[int, str | None] = dict.fromkeys([*drop, *range(0xFFF9, 0xFFFD)], None)
    table |= {char: unicodedata.normalize("NFKC", chr(char)) for char in change}
    table |= {0x149: "'n", 0xFB05: "\u017ft"}
    table |= dict.fromkeys(map(ord, "\u02bc\u2018\u2019\u201a\u201b"), "'")
    return table | dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f"), '"')


FOLD = _fold_table()
_DROP_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_DROP_ALL_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _fix(text: str) -> str:
    """open_clip's basic_clean, less the repair of wrong decoding: `"&lt;5 “µM”"` -> `'<5 "µM"'`."""
    text = html.unescape(html.unescape(text)).translate(FOLD)
    return unicodedata.normalize("NFC", text)


def _canonical(text: str) -> str:
    return " ".join(text.translate(_DROP_PUNCTUATION).lower().split())


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "clip": lambda text: _fix(text).lower(),  # open_clip's "lower"
    # As big_vision (tf.strings.lower), which leaves "Δ" alone; str.lower does not.
    "lower_ascii": lambda text: text.encode().lower().decode(),
    # big_vision's for class names: lower case, no punctuation, single spaces.
    "canonical": _canonical,
    # What open_clip puts before the vocabularies of others: "whitespace", and of SigLIP's models
    # "canonicalize".
    "openclip_whitespace": lambda text: " ".join(_fix(text).split()),
    "openclip_canonical": lambda text: _canonical(_fix(text)),
    # transformers' SiglipTokenizer, which has no space for "_", and its Siglip2Tokenizer.
    "hf_siglip": lambda text: " ".join(text.lower().translate(_DROP_ALL_PUNCTUATION).split()),
    "lower": normalizers.Lowercase().normalize_str,
}


def clip_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Splits into CLIP_WORDS and writes their UTF-8 bytes as characters."""
    split = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def clip_decoder() -> decoders.Decoder:
    # "Ġ" is the byte-level name of the space.
    return decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])


def clip_byte_names() -> list[str]:
    """GPT-2's printable name of each byte, in the order of CLIP's vocabulary: "!" first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(0x100 - len(printable)))]


CLIP_SPECIALS = ("<start_of_text>", "<end_of_text>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def _open_clip(content: bytes) -> Vocabulary:
    tokenizer, (bos, eos) = clip_tokenizer(content), CLIP_SPECIALS
    return _of_tokenizer(tokenizer, clean="clip", bos=bos, eos=eos, pad="!")


def clip_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """Of bpe_simple_vocab_16e6.txt.gz, without the cleaning."""
    lines = gzip.decompress(content).decode().split("\n")
    if len(lines) <= CLIP_NUM_MERGES:
        raise ValueError(f"expected a version line and {CLIP_NUM_MERGES} merges")
    merges = [(left, right) for left, right in map(str.split, lines[1 : 1 + CLIP_NUM_MERGES])]
    tokens = clip_byte_names() + [name + "</w>" for name in clip_byte_names()]
    tokens += ["".join(merge) for merge in merges] + list(CLIP_SPECIALS)
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = clip_pre_tokenizer()
    tokenizer.decoder = clip_decoder()
    tokenizer.add_special_tokens(list(CLIP_SPECIALS))
    return tokenizer


def _open_wordpiece(content: bytes) -> Vocabulary:
    return _of_tokenizer(wordpiece_tokenizer(content), bos="[CLS]", eos="[SEP]", pad="[PAD]")


def wordpiece_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """BERT's. The text is lower-cased if no token but [UNK] and its like has a capital letter."""
    tokens = content.decode().splitlines()
    if not set(BERT_SPECIALS) <= set(tokens):
        raise ValueError(f"expected one token a line, {' '.join(BERT_SPECIALS)} among them")
    cased = any(re.search("[A-Z]", token) for token in tokens if not re.fullmatch(r"\[.+\]", token))
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    return tokenizer


def _open_json(content: bytes) -> Vocabulary:
    """bos, eos as the file's post-processor adds them, pad as its padding, else by usual names."""
    tokenizer = tokenizers.Tokenizer.from_buffer(content)

    def first_known(*names: str) -> str:
        return next((name for name in names if tokenizer.token_to_id(name) is not None), "")

    pad = (tokenizer.padding or {}).get("pad_token") or first_known("[PAD]", "<pad>", "<|pad|>")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    example = tokenizer.encode("a")
    tokens, added = example.tokens, example.special_tokens_mask
    bos = tokens[0] if tokens and added[0] else ""
    eos = tokens[-1] if len(tokens) > 1 and added[-1] else ""
    eos = eos or first_known("</s>", "<eos>", "[SEP]", "<end_of_text>", "<|endoftext|>")
    return _of_tokenizer(tokenizer, bos=bos, eos=eos, pad=pad)


def _of_tokenizer(tokenizer: tokenizers.Tokenizer, **settings: str) -> Vocabulary:
    tokenizer.encode_special_tokens = True  # "[SEP]" in a caption is plain text
    return Vocabulary(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=tokenizer.decode,
        token_id=tokenizer.token_to_id,
        size=max(tokenizer.get_vocab().values()) + 1,  # ids may have gaps
        word_by_word=_is_word_by_word(tokenizer),
        **settings,
    )


def _is_word_by_word(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether spaces always split, and no step looks beyond them. False: that is not known."""
    clip_split = json.loads(clip_pre_tokenizer().__getstate__())["pretokenizers"][0]
    openai = rf"<\|startoftext\|>|<\|endoftext\|>|{CLIP_WORDS}"  # of Hugging Face's tokenizer.json
    clip_splits = [clip_split, dict(clip_split, pattern={"Regex": openai})]
    squeeze = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}

    def steps(component, key: str) -> list[dict]:
        tree = json.loads(component.__getstate__()) if component else {"type": "Sequence", key: []}
        return tree[key] if tree["type"] == "Sequence" else [tree]

    def normalizes_locally(step: dict) -> bool:
        unicode_forms = ("NFC", "NFD", "NFKC", "NFKD")
        return step["type"] in ("BertNormalizer", "Lowercase", *unicode_forms) or step == squeeze

    def splits_at_spaces(step: dict) -> bool:
        plain = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        return step["type"] in plain or step in clip_splits

    normalize = steps(tokenizer.normalizer, "normalizers")
    split = steps(tokenizer.pre_tokenizer, "pretokenizers")
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        all(map(normalizes_locally, normalize))
        and any(map(splits_at_spaces, split[:1]))
        and all(splits_at_spaces(step) or step["type"] == "ByteLevel" for step in split)
        and not any(re.search(r"\s", token.content) for token in added)
        and not getattr(tokenizer.model, "dropout", None)
    )


def _open_sentencepiece(content: bytes) -> Vocabulary:
    """Without a pad piece, eos pads. Cleaned as SigLIP and SigLIP 2 do."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)

    def token_id(token: str) -> int | None:
        found = processor.piece_to_id(token)  # the id of "<unk>" if there is none
        return found if processor.id_to_piece(found) == token else None

    def piece(index: int) -> str:
        return processor.id_to_piece(index) if index >= 0 else ""

    eos, pad = piece(processor.eos_id()), piece(processor.pad_id())
    return Vocabulary(
        encode=processor.encode,
        decode=processor.decode,
        token_id=token_id,
        size=processor.vocab_size(),
        clean="lower_ascii",
        eos=eos,
        pad=pad or eos,
    )


_OPEN = {
    "clip": _open_clip,
    "json": _open_json,
    "sentencepiece": _open_sentencepiece,
    "wordpiece": _open_wordpiece,
}
KINDS: Sequence[str] = tuple(_OPEN)
KIND_OF_SUFFIX = {
    ".txt.gz": "clip",
    ".json": "json",
    ".model": "sentencepiece",
    ".txt": "wordpiece",
}


def open_vocabulary(kind: str, content: bytes) -> Vocabulary:
    """Raises ValueError for a file of another kind."""
    try:
        return _OPEN[kind](content)
    except Exception as error:  # the Rust and C++ libraries raise Exception and RuntimeError
        raise ValueError(f"not a {kind} vocabulary: {error}") from error
