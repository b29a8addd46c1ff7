"""The steps of a training: patches drawn, gradients, the optimiser, the averaged weights, in the memory that there is.

Every random choice of a patch comes from a generator seeded with the seed, the step and the patch's place in the
batch. So a run that goes on after a kill draws what the uninterrupted one would have drawn, and several processes draw
together what one would.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from labelrounds import distributed
from labelrounds.cases import PreparedCase
from labelrounds.devices import autocast, is_out_of_memory, place, sound_gradients
from labelrounds.errors import Conflict, LabelRoundsError
from labelrounds.learning_state import LearningState, Tensors
from labelrounds.sections import CommonConfig
from labelrounds.tasks import task_of

_CPU = torch.device("cpu")
_GRADIENT_LIMIT = 12.0


class TrainingSteps:
    """Takes a training's steps on a device; where its memory does not suffice, with a smaller batch or on the CPU.

    Args:
        config: the model.
        network: the network to train; it is changed.
        cases: the cases to learn from.
        device: where to compute.
        total: how many steps the whole run has, over the last of which the weights are averaged.
        weights: how often each case is drawn, relative to the others; all alike when None.
        note: takes what a user should know, as a batch that was made smaller to fit into memory.

    Attributes:
        device: where it computes now.
        batch_size: patches of a step, over all processes.
        average: the averaged weights, by name.
        best: those of the best epoch so far.

    Raises:
        Conflict: there are more processes than patches in a batch.
        LabelRoundsError: the machine has not the memory for the network and the cases.
    """

    def __init__(
        self,
        config: CommonConfig,
        network: nn.Module,
        cases: list[PreparedCase],
        device: torch.device,
        total: int,
        weights: Sequence[float] | None,
        note: Callable[[str], None],
    ) -> None:
        if config.training.batch_size < distributed.processes():
            raise Conflict(
                f"{distributed.processes()} processes can't share training.batch_size {config.training.batch_size}:"
                f" start at most {config.training.batch_size}, or choose a larger batch_size"
            )
        self._config, self._network, self._cases, self._weights = config, network, cases, weights
        self._total, self._note, self._task = total, note, task_of(config)
        self._loss = self._task.loss(cases, config)
        self.batch_size = config.training.batch_size
        self.average: Tensors
        self.best: Tensors
        self._set_up(device)
        # Each step sets the rate.
        self._optimizer = torch.optim.AdamW(
            self._task.groups(network, config), weight_decay=config.training.weight_decay
        )

    def take(self, step: int, rate: float) -> float:
        """Take a step by a learning rate and return its loss; nan, and nothing changed, where there is no finite one.

        Only the gradients are computed again with a smaller batch: a step of the optimiser that fails may have changed
        some weights already.

        Raises:
            LabelRoundsError: not even a batch of one fits into the memory of the CPU.
        """
        buffers = [buffer.clone() for buffer in self._network.buffers()]  # what batch normalisation learns on its way
        while True:
            try:
                loss = self._compute_gradients(step)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._restore(buffers)
                self._make_smaller(error)
        if not math.isfinite(loss):
            self._restore(buffers)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            self._optimizer.step()
            self._follow(step)
        return loss

    def keep_average_as_best(self) -> None:
        """Keep the averaged weights, as they are now, as the best."""
        self.best = {name: value.clone() for name, value in self.average.items()}

    def optimizer_tensors(self) -> dict[int, Tensors]:
        """Return the optimiser's tensors of each parameter, by the parameter's number."""
        state = self._optimizer.state_dict()["state"]
        return {index: {name: torch.as_tensor(value) for name, value in of.items()} for index, of in state.items()}

    def restore(self, state: LearningState) -> None:
        """Go on with the weights, the optimiser's tensors and the batch of a run that was killed.

        Raises:
            ValueError: the tensors are not of this network; it is as it was before the first step.
        """
        try:
            for weights in (state.best, state.average, state.network):  # the first two only to see that they fit
                self._network.load_state_dict(weights)
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state.optimizer})
        except (LookupError, ValueError, RuntimeError) as error:
            self._network.load_state_dict(self.average)
            self._optimizer.state.clear()
            raise ValueError(error) from error
        self.average = {name: value.to(self.device) for name, value in state.average.items()}
        self.best = {name: value.to(self.device) for name, value in state.best.items()}
        batch_size = max(state.batch_size, distributed.processes())  # of another number of processes
        if batch_size != self.batch_size:
            self._note(f"batch size {batch_size} as before the restart, as memory did not suffice for more")
        self.batch_size = batch_size

    def too_large(self) -> LabelRoundsError:
        """Return the error that says what does not fit into the memory, and what to do."""
        return LabelRoundsError(
            f"training.batch_size {self.batch_size} does not fit into the memory of {self.device}; choose a"
            " smaller batch_size, patch_size or network"
        )

    def _set_up(self, device: torch.device) -> None:
        """Use a device, or the CPU where a GPU has not the memory for the network and the cases.

        Raises:
            LabelRoundsError: the machine has not the memory either, or several processes train together.
        """
        try:
            self._use(device)
            self.average, self.best = copy_weights(self._network), copy_weights(self._network)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if device.type == "cpu" or distributed.processes() > 1:
                raise self.too_large() from error
        self._note(f"{device} -> cpu: out of memory before the first step")
        self._set_up(_CPU)

    def _use(self, device: torch.device) -> None:
        """Place the network and the cases on a device."""
        self.device = device
        place(self._network, device, self._config.dimensions)
        self._sound = sound_gradients(self._network, self._task.shortest(self._config), device)
        self._sampler = self._task.sampler(self._cases, self._config, device, self._weights)
        self._supervised = distributed.synchronised(_Supervised(self._network), device)

    @torch.no_grad()
    def _restore(self, buffers: list[torch.Tensor]) -> None:
        for buffer, before in zip(self._network.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _make_smaller(self, error: Exception) -> None:
        """Give up half of the batch, or the GPU.

        Raises:
            LabelRoundsError: nothing is left to give up, or several processes train together, which can't go on with
                different batches.
        """
        if distributed.processes() > 1 or (self.batch_size == 1 and self.device.type == "cpu"):
            raise self.too_large() from error
        self._optimizer.zero_grad(set_to_none=True)
        before = self.device
        if self.batch_size > 1:
            self._note(f"batch size {self.batch_size} -> {self.batch_size // 2}: out of memory on {before}")
            self.batch_size //= 2
        else:
            self._note(f"{before} -> cpu: out of memory with a batch of one")
            self.batch_size = self._config.training.batch_size
            self._move_to_cpu()
        if before.type == "cuda":
            torch.cuda.empty_cache()

    def _move_to_cpu(self) -> None:
        self._use(_CPU)
        for state in self._optimizer.state.values():
            state.update({name: value.cpu() for name, value in state.items() if isinstance(value, torch.Tensor)})
        self.average = {name: value.cpu() for name, value in self.average.items()}
        self.best = {name: value.cpu() for name, value in self.best.items()}

    def _compute_gradients(self, step: int) -> float:
        """Leave a step's clipped gradients in the network and return its loss; nan where either is not finite."""
        images, labels = self._sampler.draw(self._generators(step))
        with autocast(self.device, self._sound):
            levels = self._supervised(images.contiguous())
        loss = self._loss(levels, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), _GRADIENT_LIMIT)
        value = distributed.mean(loss.detach()).item()
        return value if math.isfinite(value + norm.item()) else math.nan

    def _generators(self, step: int) -> list[torch.Generator]:
        """Return a source of randomness for each patch of this process's share of the step's batch."""
        first = (self._config.training.seed * 1_000_003 + step) * 4099
        places = range(distributed.rank(), self.batch_size, distributed.processes())
        return [torch.Generator().manual_seed((first + place) % 2**63) for place in places]

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Let the averaged weights follow: over the last 2 % of the run, at least 100 steps, fewer at its start."""
        keep = min(1 - 1 / max(100, self._total // 50), (1 + step) / (10 + step))
        for name, value in self._network.state_dict().items():
            if value.dtype.is_floating_point:
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)


class _Supervised(nn.Module):
    """What training calls: the logits of all supervised levels."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the network's ``forward_levels``."""
        levels: list[torch.Tensor] = self.network.forward_levels(images)
        return levels


def copy_weights(network: nn.Module) -> Tensors:
    """Return a network's tensors as they are now, by name; later training does not change them."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
