"""Replaces the arguments in library messages, ``memory=``, by the command's options, ``--memory``."""

from __future__ import annotations

import re

OPTIONS = {
    "memory=": "--memory",
    "encoder=": "--encoder",
    'encoder="none"': "--encoder none",
    "keep_pixels=": "--keep-pixels",
    'keep_pixels="yes"': "--keep-pixels yes",
    "max_distance=": "--max-distance",
    "min_score=": "--min-score",
    "text=": "--text",
    "recall=": "--recall",
    "normalize=True": "--normalize",
    "null=True": "--null",
    "vectors=": "--vectors",
    "where=": "--where",
    "path=": "--store",
    "wait=": "--wait",
    # The command has two options for this argument.
    "tiers=": "--tier and --exact",
    'tiers=["similar"]': "--tier similar",
    "near_limit=": "--near-limit",
    "max_sources=": "--sources",
    "exclude=": "--exclude",
    "yes=True": "--yes",
    "allow_missing=True": "--allow-missing",
    "dry_run=True": "--dry-run",
    'format="csv"': "--format csv",
    "images=": "--images",
    "labels=": "--labels",
    "queries=": "--queries",
    "most_train= or most_test=": "--labelled-most",
    "most_train=": "--labelled-most",
    "most_test=": "--labelled-most",
    "ks=": "--k",
    "distractors=": "--distractors",
    "out=": "--out",
    "init=": "--init",
    "held_out=": "--held-out",
    "resume=": "--resume",
    "device=": "--device",
    "weights=": "--weights",
    "layer=": "--layer",
    "precision=": "--precision",
    "calibrate=": "--calibrate",
    "image_size=": "--image-size",
    "mean=": "--mean",
    "std=": "--std",
    "resize=": "--resize",
    "shorter_side=": "--shorter-side",
    "licence=": "--licence",
}
"""The option of the command for each argument that library messages name."""

# Matches only whole words, because a folder may be called "memory=1".
_ARGUMENT = re.compile(
    r"(?<![^\s(])(?:"
    + "|".join(re.escape(argument) for argument in sorted(OPTIONS, key=len, reverse=True))
    + r")(?![^\s,;:.?)])"
)
# At a shell, "engine ingest" creates a store. There is no option for it.
_MISSING_STORE = re.compile(
    r"\A(there is no store at (.+): make one with )create=True(?=, or )", re.S
)


def in_options(message: str) -> str:
    """``message`` with options in place of the arguments that it names."""
    if "=" not in message:
        return message
    message = _MISSING_STORE.sub(r"\1'engine ingest SOURCE --store \2'", message)
    return _ARGUMENT.sub(lambda found: OPTIONS[found[0]], message)
