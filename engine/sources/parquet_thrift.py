"""Reads the part of Thrift's compact protocol that page headers use: numbers, structs without lists."""

from __future__ import annotations

from typing import Any

from engine.errors import SourceError

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_MAX_DEPTH = 4


def struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and its end; ``IndexError`` if the data ends first.

    ``SourceError`` for a struct with lists, which page headers do not have.
    """
    if depth > _MAX_DEPTH:
        raise SourceError("is damaged: not a valid Parquet page header")
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = zigzag(data, at)
        fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BYTE:
        return data[at], at + 1
    if kind in (I16, I32, I64):
        return zigzag(data, at)
    if kind == DOUBLE:
        return None, at + 8
    if kind == BINARY:
        length, at = varint(data, at)
        if at + length > len(data):
            raise IndexError
        return None, at + length
    if kind == STRUCT:
        return struct(data, at, depth + 1)
    raise SourceError("is damaged: not a valid Parquet page header")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number with seven bits per byte, and its end; ``IndexError`` if the data ends first."""
    value = shift = 0
    while data[at] & 0x80 and shift < 63:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | (data[at] & 0x7F) << shift, at + 1


def zigzag(data: bytes, at: int) -> tuple[int, int]:
    """A signed number, and its end; ``IndexError`` if the data ends first."""
    value, at = varint(data, at)
    return (value >> 1) ^ -(value & 1), at
