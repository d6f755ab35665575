"""Writes the tokenizer of CLIP, as open_clip has it in Python, as a ``tokenizer.json``."""

from __future__ import annotations

import json
from typing import Any

from ftfy import chardata

# A word's last piece has this ending, so that "art" in "art" and in "artist" are two tokens.
_END_OF_WORD = "</w>"
# What may name a character in HTML. open_clip knows two thousand; these are those that people write.
_ENTITIES = {
    "amp": "&",
    "lt": "<",
    "gt": ">",
    "quot": '"',
    "apos": "'",
    "#39": "'",
    "#34": '"',
    "#38": "&",
    "nbsp": " ",
    "hellip": "…",
    "ndash": "–",
    "mdash": "—",
    "lsquo": "'",
    "rsquo": "'",
    "ldquo": '"',
    "rdquo": '"',
    "eacute": "é",
    "deg": "°",
    "copy": "©",
    "reg": "®",
}
_TERMINAL_ESCAPES = r"\x1b\[[0-9;]*[a-zA-Z]"
# Python makes another small letter of this one at the end of a word.
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_UNCASED = r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:·’]"
_LAST_SIGMA = rf"(?<={_CASED}|{_CASED}{_UNCASED})Σ(?!{_UNCASED}*{_CASED})"


def tokenizer_json(tokenizer: Any) -> bytes:
    """The ``tokenizer.json`` of an ``open_clip.tokenizer.SimpleTokenizer``.

    The ids are the same but for texts in a wrong encoding, which open_clip mends, and for rare names of
    HTML characters.
    """
    ranks = tokenizer.bpe_ranks
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    special = {tokenizer.decoder[id_]: id_ for id_ in tokenizer.all_special_ids}
    ends = {id_: word for word, id_ in special.items()}
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id_,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
                "special": True,
            }
            for word, id_ in sorted(special.items(), key=lambda each: each[1])
        ],
        "normalizer": {"type": "Sequence", "normalizers": _cleaning()},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _words(tokenizer.pat.pattern, special)},
                    "behavior": "Removed",
                    "invert": True,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": False,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": _ends(ends[start], start, ends[end], end),
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": _END_OF_WORD,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: id_ for word, id_ in tokenizer.encoder.items() if word not in special},
            "merges": [list(pair) for pair, _ in sorted(ranks.items(), key=lambda each: each[1])],
        },
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _words(pattern: str, special: dict[str, int]) -> str:
    """The pattern of words in the syntax of the library; special tokens are matched before it."""
    names = "|".join(special)
    if not pattern.startswith(f"{names}|"):
        raise ValueError("the tokenizer splits texts in another way")
    return f"(?i:{pattern.removeprefix(f'{names}|')})"


def _cleaning() -> list[dict[str, Any]]:
    """The steps that open_clip takes by ftfy and by itself, in their order."""
    steps: list[dict[str, Any]] = []
    # Twice, as open_clip does: "&amp;lt;" is "<".
    for _ in range(2):
        steps += [_text(f"&{name};", character) for name, character in _ENTITIES.items()]
    steps += [_text(chr(code), text) for code, text in _windows().items()]
    steps += [_text(chr(code), text) for code, text in chardata.LIGATURES.items()]
    steps += [_text(chr(code), text) for code, text in chardata.WIDTH_MAP.items()]
    steps.append(_regex(chardata.SINGLE_QUOTE_RE.pattern, "'"))
    steps.append(_regex(chardata.DOUBLE_QUOTE_RE.pattern, '"'))
    steps.append(_regex(_TERMINAL_ESCAPES, ""))
    removed = "".join(f"\\x{{{code:x}}}" for code in chardata.CONTROL_CHARS)
    steps.append(_regex(f"[{removed}]", ""))
    steps += [{"type": "NFC"}, _regex(_LAST_SIGMA, "ς"), {"type": "Lowercase"}]
    return steps


def _windows() -> dict[int, str]:
    """The characters that Windows has in place of the control characters from 128 to 159."""
    found = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    return {code: text for code, text in found.items() if text}


def _text(found: str, instead: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": found}, "content": instead}


def _regex(found: str, instead: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": found}, "content": instead}


def _ends(start: str, start_id: int, end: str, end_id: int) -> dict[str, Any]:
    """The token at the start and at the end of each text."""
    template = [
        {"SpecialToken": {"id": start, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": end, "type_id": 0}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": template,
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": [id_], "tokens": [name]}
            for name, id_ in ((start, start_id), (end, end_id))
        },
    }
