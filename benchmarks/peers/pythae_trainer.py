"""pythae: the loop of `BaseTrainer.train_step` itself, over a loader that holds one minibatch n times.

So a step is the trainer's: its VAE's forward pass and loss, `zero_grad`, `backward`, the optimizer, `loss.item()`, its
check for NaN and its callbacks' events. Left out, in its favour, are the data loader and the progress bar, and Adam is
fused, by the trainer's own `optimizer_params`. Its VAE has the KL in closed form, less work than the Monte Carlo one of
the others, takes means over the batch, and draws one z: several particles it does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback
from torch import Tensor, nn

from benchmarks.hand import hand_networks
from benchmarks.sizes import LEARNING_RATE, Size

__all__ = ["Pythae"]


class Encoder(BaseEncoder):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> ModelOutput:
        loc, log_variance = self.body(x).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=log_variance)


class Decoder(BaseDecoder):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z).sigmoid())  # its "bce" takes probabilities


class Repeated:
    """The trainer's loader: one minibatch, n times, ready."""

    def __init__(self, inputs: DatasetOutput, dataset: BaseDataset, n: int) -> None:
        self.inputs, self.dataset, self.n = inputs, dataset, n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[DatasetOutput]:
        return iter([self.inputs] * self.n)


class Pythae:
    def __init__(self, size: Size, x: NDArray[np.float32]) -> None:
        assert size.particles == 1, "pythae's VAE draws one sample"
        torch.set_num_threads(1)
        torch.manual_seed(0)
        logging.disable(logging.INFO)
        encoder, decoder = hand_networks(size)
        config = VAEConfig(input_dim=size.shape, latent_dim=size.latent, reconstruction_loss="bce")
        model = VAE(config, Encoder(encoder), Decoder(decoder))
        self.dataset = BaseDataset(torch.from_numpy(x), torch.zeros(size.batch))
        self.inputs = DatasetOutput(data=self.dataset.data, labels=self.dataset.labels)
        self.trainer = BaseTrainer(
            model,
            self.dataset,
            training_config=BaseTrainerConfig(
                per_device_train_batch_size=size.batch,
                learning_rate=LEARNING_RATE,
                optimizer_params={"fused": True},
                no_cuda=True,
            ),
        )
        # Of `prepare_training` what a step needs: no folder, no progress bar.
        self.trainer.set_optimizer()
        self.trainer.callback_handler = CallbackHandler([TrainingCallback()], model)
        with torch.no_grad():
            self.loss = float(model(self.inputs).loss) * size.batch
        self.parameters = sum(p.numel() for p in model.parameters())
        self.versions = {name: version(name) for name in ("pythae", "torch")}

    def steps(self, n: int) -> None:
        self.trainer.train_loader = Repeated(self.inputs, self.dataset, n)
        self.trainer.train_step(epoch=1)
