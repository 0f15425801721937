"""Captions to token ids, and which of a record's texts is the caption.

    tokenizer = load_tokenizer(TokenizerConfig(path="bpe_simple_vocab_16e6.txt.gz"))
    tokenizer.encode(["a photo of a cat"])  # int32 [1, 77]: 49406 320 1125 539 320 2368 49407 0 ...

Shape letters: N texts, T positions (context_length).
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from jaxclip.data.record import TEXT_FIELDS
from jaxclip.data.vocabulary import CLEANERS, KIND_OF_SUFFIX, KINDS, open_vocabulary

# A text is cut at this many characters a position before all else, so that a hostile one costs no
# more than a long one. English has 3 to 6 characters a token; only above 100 are ids lost by it.
MAX_CHARS_PER_TOKEN = 100
MAX_CACHED_WORDS = 2**17  # about 30 MB a process; emptied when full
MAX_CACHED_WORD_CHARS = 32


@dataclasses.dataclass(slots=True, kw_only=True)
class TokenizerConfig:
    path: str = ""  # the vocabulary's file; "" = the dataset's tokenizer.json (the caller's doing)
    kind: str = "auto"  # auto (by the file's name), clip, json, sentencepiece or wordpiece
    context_length: int = 77  # ids a text: bos, eos and padding included
    clean: str = "auto"  # auto (by kind), none, clip, lower_ascii, canonical: vocabulary.CLEANERS
    bos: str = "auto"  # token put first; auto = as the kind or file says, "" = none
    eos: str = "auto"  # token put last, also when the text is cut; auto = as the kind or file says
    pad: str = "auto"  # token to fill up with; auto = as the kind or file says

    def validate(self) -> None:
        for field, known in (("kind", ("auto", *KINDS)), ("clean", ("auto", *CLEANERS))):
            if (value := getattr(self, field)) not in known:
                names = ", ".join(known)
                raise ValueError(f"data.tokenizer.{field} ({value!r}) must be one of {names}.")
        if self.context_length < 2:
            raise ValueError(
                f"data.tokenizer.context_length ({self.context_length}) must be at least 2: a "
                "token and eos. Set it to 77 (CLIP), 64 (SigLIP) or 256 (BiomedCLIP)."
            )


def siglip_tokenizer(path: str, context_length: int = 64) -> TokenizerConfig:
    """SigLIP's c4_en or mc4 model: eos 1, padded with it too, as the last position is pooled."""
    config = TokenizerConfig(path=path, kind="sentencepiece", pad="</s>")
    return dataclasses.replace(config, context_length=context_length)


def siglip2_tokenizer(path: str, context_length: int = 64) -> TokenizerConfig:
    """SigLIP 2's Gemma model: eos 1, no bos, padded with 0."""
    config = TokenizerConfig(path=path, kind="sentencepiece", pad="<pad>")
    return dataclasses.replace(config, context_length=context_length)


class Tokenizer:
    """Texts to ids: [bos] text eos pad... A text that is too long loses its end, never eos.

    Threads may share one. A pickle carries the file's content, so workers open no file. No caption
    can produce a special token of a clip, json or wordpiece vocabulary: "[SEP]" is plain text.

    Args:
      config: validated, with `kind` resolved.
      content: of the vocabulary's file.
    """

    def __init__(self, config: TokenizerConfig, content: bytes):
        self._config, self.content = config, content
        self.kind = config.kind
        self.file_name = epath.Path(config.path).name
        try:
            self._vocabulary = vocabulary = open_vocabulary(config.kind, content)
        except ValueError as error:
            raise ValueError(
                f"data.tokenizer.path ({config.path}) is {error}. Set data.tokenizer.path, or "
                "data.tokenizer.kind."
            ) from error
        self.context_length = config.context_length
        self.vocab_size = vocabulary.size
        has_bos = vocabulary.bos if config.bos == "auto" else config.bos
        self.special_tokens: dict[str, str] = {}  # bos (if there is one), eos, pad
        self.bos_id = self._special_id("bos") if has_bos else None
        self.eos_id = self._special_id("eos")
        self.pad_id = self._special_id("pad")
        self._room = self.context_length - 1 - (self.bos_id is not None)
        if self._room < 1:
            raise ValueError(
                f"data.tokenizer.context_length ({self.context_length}) must be at least 3: bos, a "
                "token and eos. Set it to 77 or so."
            )
        self.clean = vocabulary.clean if config.clean == "auto" else config.clean
        self._words: dict[str, tuple[int, ...]] = {}

    def _special_id(self, field: str) -> int:
        value = getattr(self._config, field)
        token = getattr(self._vocabulary, field) if value == "auto" else value
        token_id = self._vocabulary.token_id(token) if token else None
        if token_id is None:
            raise ValueError(
                f"data.tokenizer.{field} ({value!r}) must be a token of data.tokenizer.path "
                f"({self._config.path}), which {f'lacks {token!r}' if token else 'names none'}. "
                f"Set data.tokenizer.{field} to a token of the file."
            )
        self.special_tokens[field] = token
        return token_id

    def __reduce__(self):
        return Tokenizer, (self._config, self.content)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the file's content and the settings that change ids; not of its path."""
        settings = [self._config.kind, self.clean, self.context_length]
        settings += [self.bos_id, self.eos_id, self.pad_id]
        return hashlib.sha256(json.dumps(settings).encode() + b"\0" + self.content).hexdigest()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, T]."""
        if isinstance(texts, str):
            raise TypeError("encode() takes a list of texts. Write encode([text]).")
        bos = [] if self.bos_id is None else [self.bos_id]
        tokens_NT = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for row, text in enumerate(texts):
            ids = self._ids(text[: MAX_CHARS_PER_TOKEN * self.context_length])
            ids = [*bos, *ids[: self._room], self.eos_id]
            tokens_NT[row, : len(ids)] = ids
        return tokens_NT

    def _ids(self, text: str) -> list[int]:
        """Ids of `text`, or at least as many of the first ones as there is room for."""
        if not self._vocabulary.word_by_word:
            return self._compute_ids(text)
        ids: list[int] = []
        # Only " " splits: what other white space means is the vocabulary's business.
        for word in text.split(" "):
            known = self._words.get(word)
            ids += self._learn(word) if known is None else known
            if len(ids) >= self._room:
                break
        return ids

    def _learn(self, word: str) -> Sequence[int]:
        ids = tuple(self._compute_ids(word))
        if len(word) <= MAX_CACHED_WORD_CHARS:
            if len(self._words) >= MAX_CACHED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _compute_ids(self, text: str) -> list[int]:
        # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes "?".
        text = text.encode("utf-8", "replace").decode()
        return self._vocabulary.encode(CLEANERS[self.clean](text))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one row up to eos, as the model sees it: cleaned and cut."""
        ids = [int(i) for i in ids]
        ids = ids[1:] if ids[:1] == [self.bos_id] else ids
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return self._vocabulary.decode(ids).strip()


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Opens config.path, local or remote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a setting out of range, a file of another kind, a special token that it lacks.
    """
    config.validate()
    if not config.path:
        raise ValueError("data.tokenizer.path is empty. Set it to a vocabulary's file.")
    path = epath.Path(config.path)
    kind = config.kind
    if kind == "auto":
        kind = next((kind for end, kind in KIND_OF_SUFFIX.items() if path.name.endswith(end)), "")
    if not kind:
        raise ValueError(
            f"data.tokenizer.kind (auto) needs data.tokenizer.path ({config.path}) to end in "
            f"{', '.join(KIND_OF_SUFFIX)}. Set data.tokenizer.kind to one of {', '.join(KINDS)}."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"data.tokenizer.path ({config.path}) is not a file. Check the path."
        )
    return Tokenizer(dataclasses.replace(config, kind=kind), path.read_bytes())


COMBINE = ("first", "join", "sample")


@dataclasses.dataclass(slots=True, kw_only=True)
class TextPolicy:
    fields: tuple[str, ...] = ("caption",)  # of record.TEXT_FIELDS, in order of preference
    combine: str = "first"  # of the non-empty ones: first; join (by a space); sample (one a step)
    append: tuple[str, ...] = ()  # more of TEXT_FIELDS: joined behind that, where they are there
    random_sentence: bool = False  # one sentence of the text, drawn a step; in training only

    def validate(self) -> None:
        known = ", ".join(TEXT_FIELDS)
        if not self.fields or not set(self.fields) <= set(TEXT_FIELDS):
            raise ValueError(f"data.text.fields ({self.fields}) must be one or more of {known}.")
        if not set(self.append) <= set(TEXT_FIELDS):
            raise ValueError(f"data.text.append ({self.append}) must be of {known}.")
        if len({*self.fields, *self.append}) < len(self.fields) + len(self.append):
            raise ValueError(
                f"data.text.fields ({self.fields}) and data.text.append ({self.append}) must be "
                "different. Name each once."
            )
        if self.combine not in COMBINE:
            raise ValueError(
                f"data.text.combine ({self.combine!r}) must be one of {', '.join(COMBINE)}."
            )


def choose_text(
    texts: Mapping[str, str], policy: TextPolicy, rng: np.random.Generator | None
) -> str:
    """The text of one record for one step; "" if it has none.

    rng None is evaluation: always the same text, "sample" takes the first, no random sentence.
    """
    found, appended = (
        [text for field in fields if (text := texts.get(field, "").strip())]
        for fields in (policy.fields, policy.append)
    )
    if policy.combine == "sample" and rng is not None and found:
        found = [found[rng.integers(len(found))]]
    text = " ".join([*(found if policy.combine == "join" else found[:1]), *appended])
    if text and policy.random_sentence and rng is not None:
        sentences = split_sentences(text)
        text = sentences[rng.integers(len(sentences))]
    return text


REACH = 1000  # characters back that are looked at for a word or a bracket: time stays linear
_SENTENCE_END = re.compile(  # with the numbers of what it cites: "... shown. [3,4] Then ..."
    r"""(?P<stop>[.!?]["'”’)\]]*(?:\s?\[[\d,–\- ]+\])?)\s+(?=["'“‘(\[]|\d|[^\W\d_])"""
)
_ABBREVIATION = re.compile(
    r"figs?|tabs?|eqs?|refs?|suppl|nos?|vol|al|etc|vs|cf|ca|approx|resp|dr|mrs?|prof|eds?|pp|viz"
    r"|spp?|subsp|var|inc|ltd"
    r"|(?:[^\W\d_]\.)*[^\W\d_]",  # "e.g", "i.v", and "E" of "E. coli"
    re.IGNORECASE,
)
_WORD = re.compile(r"(?!(?:figs?|figures?|tables?|panels?)\b)\b[^\W\d_]{2,}", re.IGNORECASE)
_PANEL_LABEL = re.compile(r"[a-z](?: ?[-–,] ?[a-z])*\)? +[A-Z]")  # "b Axial CT", "c–e) Axial CT"


def split_sentences(text: str) -> list[str]:
    """`"(a) CT, Fig. 2. (b) E. coli."` -> `["(a) CT, Fig. 2.", "(b) E. coli."]`."""
    return [text[start:end] for start, end in sentence_spans(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each sentence, without the space around it; they leave no word out.

    In doubt two sentences stay one: after a single letter or an abbreviation, before a lower-case
    letter, inside brackets that stay open, and where one would be without a word.
    """
    spans, start = [], len(text) - len(text.lstrip())
    for match in _SENTENCE_END.finditer(text):
        stop, following = match.start(), match.end()
        begin = max(start, stop - REACH)
        if text[following].islower() and not _PANEL_LABEL.match(text, following, following + 20):
            continue
        last = text[max(begin, stop - 20) : stop].split()[-1:]
        if not last or _ABBREVIATION.fullmatch(last[0].lstrip("([\"'“‘")):
            continue
        is_open = text.count("(", begin, stop) > text.count(")", begin, match.end("stop"))
        if not is_open and _WORD.search(text, begin, stop):
            spans.append((start, match.end("stop")))
            start = following
    end = len(text.rstrip())
    if spans and not _WORD.search(text, start):  # "(b)." alone is no caption
        return [*spans[:-1], (spans[-1][0], end)]
    return [*spans, (start, end)]
