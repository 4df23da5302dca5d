"""Tokenizers: from a directory's tokenizer.json, or built from a GGUF file's metadata with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ttsi_jax.checkpoints.files import read_json
from ttsi_jax.errors import ModelFileError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_LLAMA3_SPLIT = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Pre(NamedTuple):
    """How text is cut up before byte-level merging, by `tokenizer.ggml.pre`."""

    steps: tuple[pre_tokenizers.PreTokenizer, ...]
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False


def _split(pattern: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
    return (
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_PRE = {
    "gpt-2": _Pre((_GPT2,)),
    "smollm": _Pre((pre_tokenizers.Digits(individual_digits=True), _GPT2)),
    "llama-bpe": _Pre(_split(_LLAMA3_SPLIT), ignore_merges=True, add_bos=True),
    "qwen2": _Pre(_split(_LLAMA3_SPLIT.replace("{1,3}", "")), nfc=True),
}
_MODELS = ("gpt2", "llama")


def tokenizer_from_directory(directory: Path) -> PreTrainedTokenizerFast:
    """Reads tokenizer.json with its settings; classes that the files name are not looked up, nor is any code run.

    Raises:
        ModelFileError: when tokenizer.json is missing or damaged, or there is no chat template.
    """
    path = directory / "tokenizer.json"
    read_json(path)  # refuses a missing or damaged file with a readable message
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelFileError(f"{path} cannot be used as a tokenizer: {error}") from None
    return _with_template(tokenizer)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Builds the tokenizer that a GGUF file's metadata describes.

    Raises:
        ModelFileError: for a kind of tokenizer that is not supported, inconsistent metadata, or no chat template.
    """
    tokens = _list(metadata, "tokens", str)
    if len(set(tokens)) != len(tokens):
        raise ModelFileError("tokenizer.ggml.tokens has a token twice")
    types = _list(metadata, "token_type", int) if "tokenizer.ggml.token_type" in metadata else [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelFileError(f"tokenizer.ggml: {len(tokens)} tokens but {len(types)} token types")

    model = metadata.get("tokenizer.ggml.model")
    if model not in _MODELS:
        raise ModelFileError(f"tokenizer model {model!r} is not supported; supported: {', '.join(_MODELS)}")
    try:
        if model == "gpt2":
            tokenizer, add_bos = _byte_level(metadata, tokens)
        else:
            tokenizer, add_bos = _sentencepiece(metadata, tokens, types)
    except ModelFileError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelFileError(f"the tokenizer's vocabulary and merges do not fit together: {error}") from None
    added = zip(tokens, types, strict=True)
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != USER_DEFINED)
            for token, kind in added
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
        ]
    )
    template = metadata.get("tokenizer.chat_template")
    return _with_template(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=_special(metadata, tokens, "bos"),
            eos_token=_special(metadata, tokens, "eos"),
            pad_token=_special(metadata, tokens, "padding") or _special(metadata, tokens, "eos"),
            add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
            add_eos_token=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
            chat_template=template if isinstance(template, str) else None,
            clean_up_tokenization_spaces=False,
        )
    )


def _list(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ModelFileError(f"the GGUF file has no tokenizer.ggml.{name} (a list of {kind.__name__})")
    return values


def _special(metadata: Mapping[str, Any], tokens: list[str], role: str) -> str | None:
    token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if token_id is None:
        return None
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise ModelFileError(f"tokenizer.ggml.{role}_token_id is {token_id!r}, with {len(tokens)} tokens")
    return tokens[token_id]


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen use it. Returns the tokenizer and whether it adds BOS by default."""
    name = metadata.get("tokenizer.ggml.pre")
    if name not in _PRE:
        raise ModelFileError(f"pre-tokenizer {name!r} is not supported; supported: {', '.join(_PRE)}")
    pre = _PRE[name]
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str)]
    if any(len(pair) != 2 for pair in merges):
        raise ModelFileError("tokenizer.ggml.merges has an entry that is not two tokens and a space")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(pre.steps))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE with byte fallback, as Llama 2 and Gemma use it."""
    scores = _list(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise ModelFileError(f"tokenizer.ggml: {len(tokens)} tokens but {len(scores)} scores")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer = Tokenizer(
        BPE(
            {token: index for index, token in enumerate(tokens)},
            _merges_from_scores(tokens, types, scores),
            unk_token=_special(metadata, tokens, "unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    underline = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), underline]) if prefix else underline
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer, True


def _merges_from_scores(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union is the token with the highest score: every way to cut a normal
    token in two normal ones is a merge, best union first."""
    ids = {token: index for index, token in enumerate(tokens) if types[index] == NORMAL}
    order = sorted(ids.values(), key=lambda index: (-scores[index], index))
    return [
        (tokens[index][:cut], tokens[index][cut:])
        for index in order
        for cut in range(1, len(tokens[index]))
        if tokens[index][:cut] in ids and tokens[index][cut:] in ids
    ]


def _with_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    if not tokenizer.chat_template:
        raise ModelFileError("the tokenizer has no chat template: an instruct (chat) model is needed, not a base model")
    return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerFast, declared: Iterable[Any]) -> tuple[int, ...]:
    """The token ids that end an answer: the template's end of turn first, the tokenizer's EOS, the declared ones.

    Args:
        tokenizer: with a chat template.
        declared: end ids that the model's files give.

    Raises:
        ModelFileError: when the chat template cannot be rendered, or a declared id is no token.
    """
    ids: list[Any] = [each for each in (_end_of_turn(tokenizer), tokenizer.eos_token_id, *declared) if each is not None]
    wrong = [each for each in ids if not isinstance(each, int) or not 0 <= each < len(tokenizer)]
    if wrong:
        raise ModelFileError(f"end-of-sequence ids {wrong} are not tokens: the tokenizer has {len(tokenizer)}")
    if not ids:
        raise ModelFileError("no end-of-sequence token is declared, and the chat template shows none")
    return tuple(dict.fromkeys(ids))


def _end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The added token that the chat template puts right after the assistant's words, if it does.

    It need not be marked as special: some GGUF files call an end of turn user-defined.
    """
    words = "Answered."
    messages = [{"role": "user", "content": "Asked."}, {"role": "assistant", "content": words}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # whatever a template can raise
        raise ModelFileError(f"the chat template cannot be rendered: {error}") from None
    if words not in rendered:
        raise ModelFileError("the chat template leaves out what the assistant said")
    after = tokenizer.encode(rendered.rpartition(words)[2].lstrip(), add_special_tokens=False)
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None
