"""Training and evaluation of a config in JAX on one CPU."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks import machine, training_step
from lossattn_jax.checkpoint import conversion, runs, torch_names
from lossattn_jax.kernels import cpu
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length


class Trainer:
    """A config's network and its optimiser, with random images."""

    def __init__(self, config: ConfigDict, seed: int = 0):
        cpu.tune()
        self._job = training_step.job(config)
        self._arguments = training_step.arguments(self._job, seed)
        self._is_compiled = False
        self._eval_step, self._batch = training_step.evaluation(self._job, seed)

    def seconds(self, steps: int) -> list[float]:
        """Wall times of updates; the first one ever compiles."""
        self._arguments, times = training_step.time_steps(self._job, self._arguments, steps)
        if not self._is_compiled:
            self._is_compiled = True
            cpu.release_memory()  # as `train.loop` does, also after an evaluation
        return times

    def evaluation_seconds(self, batches: int) -> list[float]:
        """Wall times of evaluated batches; the first one ever compiles."""
        times = []
        for _ in range(batches):
            began = time.perf_counter()
            variables = self._arguments[0].variables
            jax.block_until_ready(self._eval_step(variables, self._batch))
            times.append(time.perf_counter() - began)
        cpu.release_memory()
        return times

    def peak_memory(self, steps: int) -> int:
        """Largest resident memory of this process during so many updates, in bytes."""
        return machine.peak_memory(lambda: self.seconds(steps))

    def losses(
        self, weights: Mapping[str, Any], images: np.ndarray, labels: np.ndarray, steps: int
    ) -> list[float]:
        """Trains on one batch without augmentation, by our network, loss and optimiser.

        Args:
          weights: to begin with, a state dict of PyTorch.
          images: float32 `[B, H, W, 3]`, normalised.
          labels: int `[B]`.
          steps: updates.

        Returns:
          The loss before each update.
        """
        options = self._job.options
        model = runs.build_model(options.model, self._job.spec)
        extra = torch_names.layout(model).unused
        variables = conversion.from_torch_state_dict({**extra, **weights}, model)
        optimizer = make_optimizer(
            options.optimizer, lambda step: options.optimizer.learning_rate, Length(1, 1)
        )

        loss = training_step.make_loss(options, self._job.spec, model)

        def loss_of(params: Any, batch_stats: Any) -> Any:
            return loss({"params": params, "batch_stats": batch_stats}, images, labels)

        @jax.jit
        def update(params: Any, batch_stats: Any, state: Any) -> Any:
            grad = jax.value_and_grad(loss_of, has_aux=True)
            (value, batch_stats), gradients = grad(params, batch_stats)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), batch_stats, state, value

        params, batch_stats = variables["params"], variables["batch_stats"]
        state = optimizer.init(params)
        losses = []
        for _ in range(steps):
            params, batch_stats, state, value = update(params, batch_stats, state)
            losses.append(float(value))
        return losses
