"""Makes typer options of the fields of a dataclass, so that each option is written once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from typer.models import OptionInfo

Options = TypeVar("Options")


def named_options(options: type) -> dict[str, str]:
    """The long name of each option by its field, ``{"learning_rate": "--lr"}``, without arguments."""
    names = {}
    for field, hint in get_type_hints(options, include_extras=True).items():
        option = hint.__metadata__[0]
        if isinstance(option, OptionInfo):
            # In an annotation, typer takes the first name as the default.
            declared = [str(name) for name in (option.default, *(option.param_decls or ()))]
            long = [name for name in declared if name.startswith("--")]
            names[field] = (long or ["--" + field.replace("_", "-")])[0].partition("/")[0]
    return names


def takes(
    options: type[Options],
) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Decorate a command so that it gets one ``options`` object, made of the typed options.

    Each field is annotated like a typer parameter, ``Annotated[type, typer.Option(...)]``, and has a
    default. ``--help`` lists the options in the order of the fields.
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

        # Typer reads defaults from the signature and types from the annotations.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del command.__wrapped__
        return command

    return decorate
