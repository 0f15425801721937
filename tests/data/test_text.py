import concurrent.futures
import dataclasses
import gzip
import io
import itertools
import json
import pathlib
import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxclip.data import text as text_lib
from jaxclip.data.text import (
    TextPolicy,
    TokenizerConfig,
    choose_text,
    load_tokenizer,
    siglip2_tokenizer,
    siglip_tokenizer,
    split_sentences,
)

SHARED = pathlib.Path(__file__).parents[2] / "../shared/data"
SOME_CAPTIONS = [
    "Axial CT of the chest shows a nodule (arrow) in the right upper lobe.",
    "H&E stain, original magnification ×40. Scale bar, 50 µm.",
    "(a) T1-weighted MRI. (b) T2-weighted MRI; p < 0.05 vs. control.",
    "Kaplan–Meier curve of overall survival in Δ32 and wild-type mice.",
]
# What may tell a word from its neighbours: other white space, marks after a space, special tokens.
TRICKY = [
    "",
    "   ",
    "  two  spaces ",
    "tab\tline\nfeed\x1cand\x0bcontrol",
    "no\u00a0break\u2003em\u200bzero\u3000wide",
    "mark \u0301 after a space, e\u0301 after a letter",
    "[SEP] [CLS]x <end_of_text> <pad> ##ing",
    "don't 'quote' \u2018curl\u2019s\u2019 O'Neill's",
    "ΣΑΣ Σ İstanbul ﬁ ² ½ 日本語 👍🏽",
    "a_b__c (x)(y) 1.5e-3 &lt;b&gt; &amp;amp; AT&T",
    "a\x1cb c\x0bd",  # str.split() splits at both, BERT drops them
    "W" * 300,
]


@pytest.fixture(scope="session")
def captions():
    path = SHARED / "pmc_captions.jsonl.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/pmc_captions.jsonl.gz")
    with gzip.open(path, "rt") as lines:
        return [json.loads(line)["caption"] for line in itertools.islice(lines, 0, 22_000, 11)]


@pytest.fixture(scope="session")
def clip_path():
    path = SHARED / "tokenizers/bpe_simple_vocab_16e6.txt.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/tokenizers/bpe_simple_vocab_16e6.txt.gz")
    return str(path)


@pytest.fixture(scope="session")
def clip(clip_path):
    return load_tokenizer(TokenizerConfig(path=clip_path))


@pytest.fixture(scope="session")
def vocab_path(tmp_path_factory):
    """An uncased BERT vocabulary that knows words, letters and a few signs."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "axial", "ct", "of", "the", "chest", "##s", "."]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words += (
        letters
        + [f"##{letter}" for letter in letters if letter != "s"]
        + list("'&;<>()-,0123456789")
    )
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def json_path(vocab_path, tmp_path_factory):
    """The same, as Hugging Face would write it: with post-processor, truncation and padding."""
    ids = {token: i for i, token in enumerate(pathlib.Path(vocab_path).read_text().splitlines())}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=12, pad_token="[PAD]")
    tokenizer.enable_truncation(12)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture(scope="session")
def spm_path(tmp_path_factory):
    """Laid out as T5's c4_en, and SigLIP's: <pad> 0, </s> 1, <unk> 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in SOME_CAPTIONS] * 5),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spm") / "c4_en.model"
    path.write_bytes(model.getvalue())
    return str(path)


def reference(json_path):
    """The Rust library's own rows: its normalizer, special tokens, truncation and padding."""
    tokenizer = tokenizers.Tokenizer.from_file(json_path)
    tokenizer.encode_special_tokens = True
    return lambda texts: np.array([tokenizer.encode(text).ids for text in texts])


# CLIP ids below are those of open_clip 3.3.0's SimpleTokenizer, but for the row that says so.


def test_clip_sentence(clip):
    tokens = clip.encode(["a photo of a cat"])
    assert tokens.dtype == np.int32 and tokens.shape == (1, 77)
    assert tokens[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert not tokens[0, 7:].any()
    assert (clip.bos_id, clip.eos_id, clip.pad_id, clip.vocab_size) == (49406, 49407, 0, 49408)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("A\nb\tc", [320, 321, 322]),
        ("&lt;5 ‘µm’ &amp;amp; x", [283, 276, 262, 126, 113, 332, 262, 261, 343]),
        ("it's  I'LL 123 ½²", [585, 568, 328, 1342, 272, 273, 274, 33613, 41175]),
        ("ＦＵＬＬ　width ﬁ ǆ", [1476, 23571, 3589, 67, 129, 378]),
        ("naïve cafe\u0301", [1097, 35689, 563, 15304]),
        ("日本語テスト 👍🏽", [39121, 44353, 34002, 252, 2429, 228, 32421, 486, 43722]),
        ("a\x1cb c\x0bd", [3937, 4480]),
        ("ΣΑΣ Σ", [139, 225, 138, 109, 139, 480, 139, 481]),
        ("x\u00a0y\u2003z\u200bq", [343, 344, 345, 9844, 336]),
        ("\ud800", [286]),  # open_clip has U+FFFD for a lone surrogate, we have "?"
    ],
)
def test_clip_cleans_as_open_clip(clip, text, ids):
    row = clip.encode([text])[0].tolist()
    assert row[: len(ids) + 2] == [49406, *ids, 49407]


def test_clip_equals_open_clip(clip, captions):
    open_clip = pytest.importorskip("open_clip")
    expected = open_clip.get_tokenizer("ViT-B-32")(captions).numpy()
    np.testing.assert_array_equal(clip.encode(captions), expected)


def test_no_caption_produces_special_tokens(clip, vocab_path):
    # open_clip gives eos for "<end_of_text>", and the embedding would be read there.
    ids = clip.encode(["<end_of_text> <start_of_text> b"])[0]
    assert (ids == 49407).sum() == 1 and (ids == 49406).sum() == 1
    bert = load_tokenizer(TokenizerConfig(path=vocab_path))
    assert (bert.encode(["[SEP] b [PAD] [CLS]"])[0] == bert.eos_id).sum() == 1


def test_word_cache_changes_nothing_clip(clip, captions):
    texts = [*captions, *TRICKY]
    cached = clip.encode(texts)
    uncached = load_tokenizer(clip._config)
    uncached._vocabulary.word_by_word = False
    np.testing.assert_array_equal(cached, uncached.encode(texts))
    np.testing.assert_array_equal(cached, clip.encode(texts))  # now from the cache


def test_word_cache_changes_nothing_json(json_path):
    tokenizer = load_tokenizer(TokenizerConfig(path=json_path, context_length=12))
    assert tokenizer._vocabulary.word_by_word
    for texts in (SOME_CAPTIONS, TRICKY, [text.upper() for text in SOME_CAPTIONS]):
        np.testing.assert_array_equal(tokenizer.encode(texts), reference(json_path)(texts))


def test_context_length_is_ours_not_the_file_s(json_path):
    # The file says to cut and pad at 12.
    tokenizer = load_tokenizer(TokenizerConfig(path=json_path, context_length=20))
    assert tokenizer.encode(["ct " * 15]).tolist() == [[2, *[5] * 15, 3, 0, 0, 0]]
    assert tokenizer.encode(["ct " * 30]).tolist() == [[2, *[5] * 18, 3]]
    whole = "x" * 15  # one word of 15 pieces
    assert (tokenizer.encode([whole])[0] > 3).sum() == 15


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (None, pre_tokenizers.Metaspace()),  # words know that a space is before them
        (None, pre_tokenizers.ByteLevel()),
        (None, None),
        (normalizers.Replace("e c", "x"), pre_tokenizers.Whitespace()),  # looks across a space
    ],
)
def test_no_word_cache_where_words_are_not_independent(normalizer, pre_tokenizer, tmp_path):
    tokens = ["[PAD]", "[SEP]", "[UNK]", "the", "chest", "▁the", "▁chest", "Ġchest", "the chest"]
    ids = {token: i for i, token in enumerate([*tokens, "thxhest"])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(TokenizerConfig(path=str(tmp_path / "tokenizer.json"), context_length=6))
    for text in ("the chest", "the  chest"):
        expected = [*tokenizer.encode(text).ids, 1]
        assert ours.encode([text])[0, : len(expected)].tolist() == expected


def test_cache_is_bounded(vocab_path, monkeypatch):
    texts = [f"chest{i} ct" for i in range(50)] + ["of " + "x" * 90]
    expected = load_tokenizer(TokenizerConfig(path=vocab_path)).encode(texts)
    monkeypatch.setattr(text_lib, "MAX_CACHED_WORDS", 8)
    small = load_tokenizer(TokenizerConfig(path=vocab_path))
    np.testing.assert_array_equal(small.encode(texts), expected)
    assert len(small._words) <= 8
    assert max(map(len, small._words)) <= text_lib.MAX_CACHED_WORD_CHARS


def test_hostile_length_is_cut_first(vocab_path):
    tokenizer = load_tokenizer(TokenizerConfig(path=vocab_path, context_length=16))
    seen = []
    encode = tokenizer._vocabulary.encode
    tokenizer._vocabulary.encode = lambda text: seen.append(len(text)) or encode(text)
    tokenizer.encode(["x" * 10_000_000, "&amp;" * 1_000_000])
    assert max(seen) <= 16 * text_lib.MAX_CHARS_PER_TOKEN


def test_bert(vocab_path):
    tokenizer = load_tokenizer(TokenizerConfig(path=vocab_path, context_length=8))
    # [CLS] axial ct of the chest ##s [SEP]; then [CLS] . [SEP] and padding.
    assert tokenizer.encode(["Axial CT of the chests", "."]).tolist() == [
        [2, 4, 5, 6, 7, 8, 9, 3],
        [2, 10, 3, 0, 0, 0, 0, 0],
    ]


def test_cased_vocabulary_is_not_lowered(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nCT\nct\n")
    tokenizer = load_tokenizer(TokenizerConfig(path=str(path), context_length=4))
    assert tokenizer.encode(["CT ct"]).tolist() == [[2, 4, 5, 3]]


def test_siglip_pads_with_eos_and_siglip2_with_zero(spm_path):
    processor = sentencepiece.SentencePieceProcessor(model_file=spm_path)
    ids = processor.encode("axial ct")
    for config, pad in ((siglip_tokenizer(spm_path), 1), (siglip2_tokenizer(spm_path), 0)):
        row = load_tokenizer(config).encode(["Axial CT"])[0].tolist()
        assert row == [*ids, 1] + [pad] * (64 - len(ids) - 1)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7])
def test_eos_is_sticky(spm_path, length):
    # As big_vision's tokenize(eos="sticky", pad_value=1): from "aaa" and T=3, [a, a, eos].
    ids = sentencepiece.SentencePieceProcessor(model_file=spm_path).encode("ct of")
    row = load_tokenizer(siglip_tokenizer(spm_path, length)).encode(["CT of"])[0].tolist()
    assert row == ([*ids[: length - 1], 1] + [1] * length)[:length]


def test_clip_is_cut_before_eos(clip_path):
    row = load_tokenizer(TokenizerConfig(path=clip_path, context_length=4)).encode(["a photo of"])
    assert row.tolist() == [[49406, 320, 1125, 49407]]


def test_lower_ascii_leaves_greek_alone(clip_path):
    # tf.strings.lower, which SigLIP was trained with, changes A-Z only.
    config = TokenizerConfig(path=clip_path, clean="lower_ascii")
    tokenizer = load_tokenizer(config)
    assert tokenizer.decode(tokenizer.encode(["ΔF508 ÄB"])[0]) == "Δf 5 0 8 Äb"


def test_canonical_cleaning(vocab_path):
    config = TokenizerConfig(path=vocab_path, context_length=8, clean="canonical")
    row = load_tokenizer(config).encode(["Axial_CT, (of)  the-chest."])
    expected = load_tokenizer(dataclasses.replace(config, clean="none")).encode(
        ["axial ct of thechest"]
    )
    np.testing.assert_array_equal(row, expected)


def test_decode_reads_up_to_eos(clip, spm_path):
    # "!" is CLIP's padding, id 0, and also a word.
    assert clip.decode(clip.encode(["Café, it's a CT!"])[0]) == "café , it 's a ct !"
    siglip = load_tokenizer(siglip_tokenizer(spm_path))
    assert siglip.decode(siglip.encode(["Axial CT."])[0]) == "axial ct."


def test_pickle_needs_no_file(vocab_path, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(pathlib.Path(vocab_path).read_bytes())
    tokenizer = load_tokenizer(TokenizerConfig(path=str(path)))
    expected = tokenizer.encode(SOME_CAPTIONS)
    path.unlink()
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode(SOME_CAPTIONS), expected)
    assert copy.fingerprint == tokenizer.fingerprint


def test_threads_share_a_tokenizer(vocab_path, monkeypatch):
    monkeypatch.setattr(text_lib, "MAX_CACHED_WORDS", 4)  # emptied all the time
    texts = [f"{text} {i}" for i in range(50) for text in SOME_CAPTIONS]
    expected = load_tokenizer(TokenizerConfig(path=vocab_path)).encode(texts)
    tokenizer = load_tokenizer(TokenizerConfig(path=vocab_path))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for tokens in pool.map(tokenizer.encode, [texts] * 8):
            np.testing.assert_array_equal(tokens, expected)


def test_fingerprint_follows_ids_not_the_path(vocab_path, tmp_path):
    config = TokenizerConfig(path=vocab_path, context_length=8)
    same = tmp_path / "elsewhere.txt"
    same.write_bytes(pathlib.Path(vocab_path).read_bytes())
    changed = tmp_path / "changed.txt"
    changed.write_bytes(pathlib.Path(vocab_path).read_bytes() + b"liver\n")
    fingerprint = load_tokenizer(config).fingerprint
    for settings in (
        {"path": str(same)},
        {"kind": "wordpiece"},
        {"pad": "[PAD]"},
        {"clean": "none"},
    ):
        assert load_tokenizer(dataclasses.replace(config, **settings)).fingerprint == fingerprint
    for settings in (
        {"path": str(changed)},
        {"context_length": 9},
        {"pad": "."},
        {"clean": "clip"},
    ):
        assert load_tokenizer(dataclasses.replace(config, **settings)).fingerprint != fingerprint


def test_special_tokens_by_name(json_path):
    config = TokenizerConfig(path=json_path, context_length=5, bos="", eos=".", pad="[SEP]")
    tokenizer = load_tokenizer(config)
    assert tokenizer.bos_id is None
    assert tokenizer.encode(["CT of"]).tolist() == [[5, 6, 10, 3, 3]]


def test_vocab_size_is_above_ids_with_gaps(tmp_path):
    ids = {"[PAD]": 0, "[SEP]": 1, "a": 900}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[SEP]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(TokenizerConfig(path=str(tmp_path / "tokenizer.json"))).vocab_size == 901


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": ""}, "data.tokenizer.path is empty. Set it to"),
        ({"kind": "gpt2"}, "data.tokenizer.kind ('gpt2') must be one of auto, clip, json"),
        ({"clean": "ftfy"}, "data.tokenizer.clean ('ftfy') must be one of auto, none, clip"),
        ({"context_length": 1}, "data.tokenizer.context_length (1) must be at least 2"),
        (
            {"context_length": 2},
            "data.tokenizer.context_length (2) must be at least 3: bos, a token",
        ),
        (
            {"path": "words.dat"},
            "data.tokenizer.kind (auto) needs data.tokenizer.path (words.dat) to end in",
        ),
        ({"kind": "clip"}, "is not a clip vocabulary: "),
        ({"kind": "json"}, "is not a json vocabulary: "),
        ({"kind": "sentencepiece"}, "is not a sentencepiece vocabulary: "),
        ({"pad": "<pad>"}, "data.tokenizer.pad ('<pad>') must be a token of data.tokenizer.path"),
        ({"bos": "<s>"}, "lacks '<s>'. Set data.tokenizer.bos to a token of the file."),
        ({"eos": ""}, "data.tokenizer.eos ('') must be a token"),
    ],
)
def test_errors_say_what_to_do(vocab_path, settings, message):
    with pytest.raises(ValueError) as error:
        load_tokenizer(TokenizerConfig(**{"path": vocab_path, **settings}))
    assert message in str(error.value)


def test_file_errors(tmp_path, spm_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.path \(.*none\.json\) is not a file"):
        load_tokenizer(TokenizerConfig(path=str(tmp_path / "none.json")))
    for kind in ("wordpiece", "clip", "json"):
        with pytest.raises(ValueError, match=f"is not a {kind} vocabulary"):
            load_tokenizer(TokenizerConfig(path=spm_path, kind=kind))
    empty = tmp_path / "empty.model"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.model"):
        load_tokenizer(TokenizerConfig(path=str(empty)))
    no_pad = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[SEP]": 1}, unk_token="a"))
    no_pad.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.pad \('auto'\).* names none"):
        load_tokenizer(TokenizerConfig(path=str(tmp_path / "tokenizer.json")))


def test_a_string_is_not_a_list_of_texts(vocab_path):
    with pytest.raises(TypeError, match=r"encode\(\[text\]\)"):
        load_tokenizer(TokenizerConfig(path=vocab_path)).encode("chest")


TEXTS = {"caption": "(a) CT. (b) MRI.", "panel_caption": " CT. ", "references": "", "summary": "S"}


def test_choose_text_in_evaluation():
    fields = ("references", "panel_caption", "caption")
    assert choose_text(TEXTS, TextPolicy(), None) == "(a) CT. (b) MRI."
    assert choose_text(TEXTS, TextPolicy(fields=fields), None) == "CT."
    joined = TextPolicy(fields=fields, combine="join", random_sentence=True)
    assert choose_text(TEXTS, joined, None) == "CT. (a) CT. (b) MRI."
    sampled = TextPolicy(fields=fields, combine="sample", random_sentence=True)
    assert choose_text(TEXTS, sampled, None) == "CT."
    assert choose_text({"caption": " "}, TextPolicy(fields=fields), None) == ""


def test_appended_texts_come_behind_the_chosen_one():
    fields, rng = ("panel_caption", "caption"), np.random.default_rng(0)
    policy = TextPolicy(fields=fields, append=("references", "summary"))
    assert choose_text(TEXTS, policy, None) == choose_text(TEXTS, policy, rng) == "CT. S"
    assert choose_text({"caption": "A.", "references": "R."}, policy, None) == "A. R."
    assert choose_text({"summary": "S"}, policy, None) == "S"  # kept if either is there
    drawn = TextPolicy(fields=fields, combine="sample", append=("summary",))
    assert {choose_text(TEXTS, drawn, rng) for _ in range(50)} == {"CT. S", "(a) CT. (b) MRI. S"}


def test_choose_text_draws_every_text_and_sentence():
    rng = np.random.default_rng(0)
    policy = TextPolicy(fields=("caption", "references", "summary"), combine="sample")
    assert {choose_text(TEXTS, policy, rng) for _ in range(50)} == {"(a) CT. (b) MRI.", "S"}
    joined = dataclasses.replace(policy, combine="join")
    assert {choose_text(TEXTS, joined, rng) for _ in range(9)} == {"(a) CT. (b) MRI. S"}
    policy = TextPolicy(random_sentence=True)
    assert {choose_text(TEXTS, policy, rng) for _ in range(50)} == {"(a) CT.", "(b) MRI."}
    assert choose_text({}, policy, rng) == ""
    draws = [choose_text(TEXTS, policy, np.random.default_rng(i)) for i in range(9)]
    assert draws == [choose_text(TEXTS, policy, np.random.default_rng(i)) for i in range(9)]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (TextPolicy(fields=()), "data.text.fields (()) must be one or more of caption"),
        (
            TextPolicy(fields=("title",)),
            "data.text.fields (('title',)) must be one or more of caption",
        ),
        (TextPolicy(fields=("caption", "caption")), "must be different. Name each once."),
        (TextPolicy(append=("title",)), "data.text.append (('title',)) must be of caption"),
        (TextPolicy(append=("caption",)), "must be different. Name each once."),
        (
            TextPolicy(combine="mix"),
            "data.text.combine ('mix') must be one of first, join, sample.",
        ),
    ],
)
def test_policy_errors(policy, message):
    with pytest.raises(ValueError) as error:
        policy.validate()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "sentences",
    [
        ["CT of the chest."],
        ["See Fig. 2 and Figs. 3 of Smith et al. (2020)."],
        ["Growth of E. coli and S. aureus, e.g. on agar, at 0.5 mg and p = .05 vs. control."],
        ["Scale bar, 10 μm.", "Arrow: nodule."],
        ["Is it a cyst?", "Yes!", "“Probably.”", "(Courtesy of Dr. A. Smith.)"],
        ["(a) Axial CT.", "(b) Coronal CT, as in Fig. 2.", "[c] None."],
        ["Types of cell.", "a Flat cells.", "b–d) Round cells in vitamin C."],
        ["Results of 2 trials.", "2D and 3D views."],
        ["1. Liver in mice."],
        ["Cells grew. n = 3 each."],  # in doubt, one
        ["Uptake of vitamin D. The arrow shows bone."],  # in doubt, one
        ["Axial CT. (b)."],  # "(b)." says nothing
        ["Fig. 2. Chest CT."],
        ["A. Smith et al. found (p < 0.05. No) it in 20 min.", "Yes [3].", "3 mice"],
        ["It was shown. [3,4]", "Then, etc. Also (see Fig. 2. It)."],  # in doubt, one
        ["[SEP]"],
        [""],
    ],
)
def test_split_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


def test_split_sentences_loses_nothing(captions):
    for caption in captions:
        sentences = split_sentences(caption)
        assert "".join("".join(sentences).split()) == "".join(caption.split())
        assert all(sentences)
