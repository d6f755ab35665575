"""Lets a step of minutes end where it is: a network that asks, behind each layer, whether to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class AbandonedError(Exception):
    """The pass through the network was not ended, because the run is to stop."""


@contextmanager
def stopping_between_layers(network: nn.Module, stop: Callable[[], bool]) -> Iterator[None]:
    """Passes that begin in the block raise ``AbandonedError`` once ``stop`` says so, gradients too."""

    def ask(*_: object) -> None:
        if stop():
            raise AbandonedError

    def behind(module: nn.Module, inputs: object, output: object) -> None:
        ask()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(ask)  # type: ignore[no-untyped-call]

    layers = [module for module in network.modules() if not any(module.children())]
    hooks = [layer.register_forward_hook(behind) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def undone_if_abandoned(network: nn.Module) -> Iterator[None]:
    """Put back what an abandoned pass has changed: the running statistics of normalisation."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    except AbandonedError:
        for buffer, value in before:
            buffer.copy_(value)
        raise
