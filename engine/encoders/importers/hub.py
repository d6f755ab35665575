"""Explains in one line why the weights of a model cannot be downloaded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import EncoderError

# By the names of their classes: the libraries that define them may not be installed.
_GATED = {"GatedRepoError"}
_OFFLINE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}
_ABSENT = {"RepositoryNotFoundError", "EntryNotFoundError", "RevisionNotFoundError"}


@contextmanager
def fetching(spec: str, instead: str = "give a file of weights with weights=") -> Iterator[None]:
    """Around the call that downloads weights; its errors become ``EncoderError``.

    ``instead`` says what to do without a network.
    """
    try:
        # torch.hub prints what it downloads. Standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (EncoderError, KeyboardInterrupt, MemoryError):
        raise
    # Libraries raise errors of requests, httpx, urllib and their own.
    except Exception as error:
        raise EncoderError(_why(spec, error, instead)) from None


def _why(spec: str, error: Exception, own: str) -> str:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(cause)
    names = {base.__name__ for each in chain for base in type(each).__mro__}
    if names & _GATED:
        return (
            f"the weights of {spec} are given only to people who accepted their licence: accept it on "
            f"the model's page and log in with 'hf auth login', or {own}"
        )
    if names & _ABSENT and not names & _OFFLINE:
        return f"the hub has no weights for {spec}: check the name, or {own}"
    first = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the weights of {spec} cannot be downloaded ({first}): connect to the network, or {own}"
