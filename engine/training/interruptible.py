"""Lets a training step of minutes stop early: the network polls after each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class AbandonedError(Exception):
    """A pass through the network was abandoned, because the run should stop."""


@contextmanager
def stopping_between_layers(network: nn.Module, stop: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, forward and backward passes raise ``AbandonedError`` once ``stop()`` is true."""

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
    """Restore what an abandoned pass changed: the running statistics of normalisation."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    except AbandonedError:
        for buffer, value in before:
            buffer.copy_(value)
        raise
