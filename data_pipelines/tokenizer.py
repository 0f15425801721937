r"""Captions -> tokenizer.json, a vocabulary of their own words, for a text tower from scratch.

    python -m data_pipelines.tokenizer --input=DATASET --vocab_size=8192 \
        --out=DATASET/tokenizer.json

--input is a dataset, of which only the train split is read, or a .jsonl or .jsonl.gz with a column
--field. The same texts give the same file, byte for byte. 22,000 captions take 10 seconds.

wordpiece is BERT's: lower case, no accents, [CLS] text [SEP]; a word with a character that is not
in the vocabulary is [UNK]. bpe is CLIP's: lower case, on bytes, so that nothing is unknown.
"""

import collections
import dataclasses
import functools
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipelines.options import option, run
from jaxclip.data.dataset import Dataset
from jaxclip.data.files import write_atomically
from jaxclip.data.record import TEXT_FIELDS
from jaxclip.data.text import TokenizerConfig, load_tokenizer
from jaxclip.data.vocabulary import clip_byte_names, clip_decoder, clip_pre_tokenizer

KINDS = ("wordpiece", "bpe")
MAX_CHARACTERS = 1000  # of wordpiece, the most frequent: two tokens each are spent on them
MAX_REPORT_TEXTS = 10_000


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, kind: str = "wordpiece"
) -> tokenizers.Tokenizer:
    """A vocabulary of `texts`, all held in memory; with bos, eos and pad, as load_tokenizer wants.

    Raises:
      ValueError: no texts; kind unknown; vocab_size below what the single characters take.
    """
    if kind not in KINDS:
        raise ValueError(f"kind ({kind!r}) must be one of {', '.join(KINDS)}.")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("texts (0) must be at least 1: all are empty. Check input and field.")
    build = _wordpiece if kind == "wordpiece" else _bpe
    tokenizer, trainer_class, specials, characters, to_train_on = build(texts)
    # The trainers number characters in the order of a hash table with a random seed, and ties
    # between merges go by number. Named as special tokens, characters are numbered in our order.
    seeds = [*specials, *characters]
    if vocab_size <= len(seeds):
        raise ValueError(
            f"vocab_size ({vocab_size}) must be above {len(seeds)}, the special tokens and single "
            f"characters of {kind}. Set vocab_size to 4096 or so."
        )
    trainer = trainer_class(
        vocab_size=vocab_size, min_frequency=2, special_tokens=seeds, show_progress=False
    )
    tokenizer.train_from_iterator(to_train_on, trainer)
    return _finish(tokenizer, specials)


def _wordpiece(texts: list[str]):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    counts: collections.Counter[str] = collections.Counter()
    clean = [tokenizer.normalizer.normalize_str(text) for text in texts]
    for text in clean:
        counts.update(text)
    by_count = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    kept, rare = sorted(by_count[:MAX_CHARACTERS]), by_count[MAX_CHARACTERS:]
    without_rare = str.maketrans(dict.fromkeys(rare, " "))
    characters = [*kept, *(f"##{c}" for c in kept)]
    clean = (text.translate(without_rare) for text in clean) if rare else clean
    return tokenizer, trainers.WordPieceTrainer, specials, characters, clean


def _bpe(texts: list[str]):
    specials = ["<pad>", "<start_of_text>", "<end_of_text>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = clip_pre_tokenizer()
    tokenizer.decoder = clip_decoder()
    characters = [*clip_byte_names(), *(f"{name}</w>" for name in clip_byte_names())]
    trainer = functools.partial(trainers.BpeTrainer, end_of_word_suffix="</w>")
    return tokenizer, trainer, specials, characters, texts


def _finish(trained: tokenizers.Tokenizer, specials: list[str]) -> tokenizers.Tokenizer:
    """The trained model afresh: its characters no longer special, bos, eos and pad written down."""
    state = json.loads(trained.to_str())
    state["added_tokens"] = []
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(specials)
    pad = specials[0]
    bos, eos = ("[CLS]", "[SEP]") if "[CLS]" in specials else ("<start_of_text>", "<end_of_text>")
    ids = [(token, tokenizer.token_to_id(token)) for token in (bos, eos)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=ids
    )
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, path: epath.PathLike) -> None:
    """Writes tokenizer.json, whole or not at all."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tokenizer.to_str(pretty=True))


def describe(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> dict[str, float]:
    """Share of unknown tokens, tokens a text with bos and eos, share of texts above 77 tokens."""
    texts = [text for text in texts if text.strip()]
    texts = texts[:: max(1, len(texts) // MAX_REPORT_TEXTS)]
    unknown = tokenizer.token_to_id("[UNK]")
    lengths, num_unknown = [], 0
    for start in range(0, len(texts), 256):  # an encoding takes about 100 KB
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 256]):
            lengths.append(sum(encoding.attention_mask))
            num_unknown += encoding.ids.count(unknown) if unknown is not None else 0
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "unknown_tokens": num_unknown / sum(lengths),
        "tokens_per_text": sum(lengths) / len(lengths),
        "longer_than_77": sum(length > 77 for length in lengths) / len(lengths),
    }


def read_texts(path: epath.PathLike, field: str, max_texts: int) -> list[str]:
    """At most max_texts texts: evenly spaced in a dataset's train split, else the first.

    Raises:
      FileNotFoundError: neither a dataset nor a .jsonl or .jsonl.gz.
      ValueError: the field is not there, or a line is not JSON.
    """
    path = epath.Path(path)
    if path.is_dir():
        return list(_dataset_texts(Dataset(path), field, max_texts))
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise FileNotFoundError(f"input ({path}) must be a dataset, .jsonl or .jsonl.gz. Check it.")
    return list(itertools.islice(_jsonl_texts(path, field), max_texts))


def _dataset_texts(dataset: Dataset, field: str, max_texts: int) -> Iterator[str]:
    if field not in TEXT_FIELDS:
        raise ValueError(f"field ({field!r}) must be one of {', '.join(TEXT_FIELDS)}.")
    positions = dataset.positions("train")
    if len(positions) > max_texts:
        positions = positions[np.linspace(0, len(positions) - 1, max_texts).astype(np.int64)]
    for position in positions.tolist():
        yield getattr(dataset[position], field)


def _jsonl_texts(path: epath.Path, field: str) -> Iterator[str]:
    zipped = path.name.endswith(".gz")
    with path.open("rb") as raw, gzip.open(raw) if zipped else raw as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, must be JSON: {error}.") from None
            if not isinstance(row, dict) or field not in row:
                raise ValueError(f"{path}, line {number}, has no field {field!r}. Set field.")
            if isinstance(row[field], str):
                yield row[field]


@dataclasses.dataclass(slots=True, kw_only=True)
class TokenizerOptions:
    input: str = option("", "dataset (its train split), .jsonl or .jsonl.gz")
    out: str = option("", "file to write, e.g. DATASET/tokenizer.json")
    field: str = option("caption", "text of a record, or column of the .jsonl")
    vocab_size: int = option(8192, "tokens, special ones included")
    kind: str = option("wordpiece", "wordpiece (BERT's way) or bpe (CLIP's)")
    max_texts: int = option(1_000_000, "texts to read at most")

    def validate(self) -> None:
        for name in ("input", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        for name in ("vocab_size", "max_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.kind not in KINDS:
            raise ValueError(f"kind ({self.kind!r}) must be one of {', '.join(KINDS)}.")


def main(options: TokenizerOptions) -> None:
    options.validate()
    texts = read_texts(options.input, options.field, options.max_texts)
    tokenizer = train_tokenizer(texts, vocab_size=options.vocab_size, kind=options.kind)
    save_tokenizer(tokenizer, options.out)
    fingerprint = load_tokenizer(TokenizerConfig(path=options.out, kind="json")).fingerprint
    report = {"texts": len(texts)} | describe(tokenizer, texts) | {"fingerprint": fingerprint}
    print(json.dumps(report))


if __name__ == "__main__":
    run(main, TokenizerOptions)
