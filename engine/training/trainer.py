"""One step of training: the network, its method and its optimizer, and the state to save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.training.distill import Taught
from engine.training.interruptible import stopping_between_layers, undone_if_abandoned
from engine.training.methods import method
from engine.training.model import SimCLR
from engine.training.settings import TrainSettings
from engine.training.teacher import TeacherVectors


class Trainer:
    """A network on its device, with its method and its optimizer."""

    def __init__(
        self,
        settings: TrainSettings,
        network: SimCLR,
        labels: Sequence[str | None],
        device: torch.device,
        stop: Callable[[], bool],
        vectors: TeacherVectors | None = None,
    ) -> None:
        """``labels`` are those of the training images, ``vectors`` those of a teacher, if there is one.

        Passes are abandoned once ``stop()`` is true.
        """
        self.device = device
        self.network = network.to(memory_format=torch.channels_last).to(device)
        self.method = method(settings, self.network, labels)
        if vectors is not None:
            self.method = Taught(settings, self.method, vectors, device)
        self._bf16 = settings.precision == "bf16"
        self._stop = stop
        self._parameters: dict[str, nn.Parameter] = {
            **{f"network.{name}": value for name, value in self.network.named_parameters()},
            **{f"method.{name}": value for name, value in self.method.parameters().items()},
        }
        # Biases and normalisation scales do not decay: that would not regularise the network.
        weights = [value for value in self._parameters.values() if value.ndim > 1]
        others = [value for value in self._parameters.values() if value.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            fused=True,  # halves the time of an update
        )

    def step(self, rows: Sequence[int], views: Tensor, rate: float) -> float:
        """Take one step on (views × batch, 3, S, S) float32, first views and then second views.

        Returns the loss. Raises ``AbandonedError`` if the run should stop, with the network unchanged.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        with undone_if_abandoned(self.network):
            loss = self.method.loss(self.network, self.embed, rows, views)
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.method.after_step(self.network)
        return loss.item()

    def embed(self, network: SimCLR, x: Tensor) -> Tensor:
        """(n, 3, S, S) float32 → (n, dim) float32 of unit length."""
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16),
            stopping_between_layers(network, self._stop),
        ):
            z: Tensor = network(x.contiguous(memory_format=torch.channels_last))
        return z

    def tensors(self) -> dict[str, Tensor]:
        """The state that training needs to resume, by name."""
        tensors = {
            **_named("network.", self.network.state_dict()),
            **_named("method.", self.method.tensors()),
        }
        for name, parameter in self._parameters.items():
            tensors |= _named(f"optimizer.{name}.", self._optimizer.state[parameter])
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that ``tensors`` returned.

        ``KeyError``, ``ValueError`` or ``RuntimeError`` if it does not fit.
        """
        self.network.load_state_dict(_under("network.", tensors))
        self.method.load(_under("method.", tensors))
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = adam_state(
                parameter, _under(f"optimizer.{name}.", tensors)
            )


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn errors of too little memory into ``TrainingError`` with advice."""
    try:
        yield
    except RuntimeError as error:
        # On a CPU the error has no class of its own.
        if "allocate" not in str(error):
            raise
        raise TrainingError(
            f"the {device} has too little memory: choose a smaller batch, image_size, hidden, dim "
            f"or queue"
        ) from None


def adam_state(parameter: nn.Parameter, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state of a parameter, on the parameter's device and in its memory format."""
    # The step count too, because the fused update of a GPU reads it on the device.
    kept = {"step": saved["step"].to(parameter.device, torch.float32).reshape(())}
    for name in ("exp_avg", "exp_avg_sq"):
        if saved[name].shape != parameter.shape:
            raise ValueError(f"{name} has the shape {tuple(saved[name].shape)}")
        kept[name] = torch.empty_like(parameter.detach()).copy_(saved[name])
    return kept


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
