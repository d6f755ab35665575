"""Lets typer read a command's options off the fields of a dataclass, so that each is written once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def named_options(options: type) -> dict[str, str]:
    """The long name of each option, by its field: ``{"learning_rate": "--lr"}``; not of arguments."""
    names = {}
    for field, hint in get_type_hints(options, include_extras=True).items():
        option = hint.__metadata__[0]
        declared = getattr(option, "param_decls", None)
        if declared is not None:
            # Newer versions of typer take the first name for the default until the command is built.
            written = [option.default, *declared]
            long = [name for name in written if isinstance(name, str) and name.startswith("--")]
            names[field] = (long or ["--" + field.replace("_", "-")])[0].partition("/")[0]
    return names


def takes(
    options: type[Options],
) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """A decorator: the command is called with one ``options``, made of what was typed.

    Each field is annotated as typer wants a parameter, ``Annotated[type, typer.Option(...)]``, and
    has a default. The order of the fields is that of ``--help``.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
    ]

    def decorate(run: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(run)
        def command(**typed: Any) -> None:
            run(options(**typed))

        # Typer reads both: the one for defaults, the other for types.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del command.__wrapped__
        return command

    return decorate
