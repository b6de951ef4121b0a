"""What is not observed is 0."""

import pytest
import torch

from ppl_vae import Batch, InputError, fit, log_marginal
from ppl_vae.masks import refuse_hidden_values
from ppl_vae.testing import LinearGaussian, LinearGaussianPosterior

MASK = torch.tensor([[True, False], [True, True]])


def test_zeros_pass_and_values_are_named() -> None:
    refuse_hidden_values(Batch(x=torch.ones(2, 2) * MASK, observed=MASK), "data")
    refuse_hidden_values(Batch(x=torch.ones(2, 2)), "data")
    with pytest.raises(InputError, match=r"data\.x\[0, 1\] is 1 where observed is False"):
        refuse_hidden_values(Batch(x=torch.ones(2, 2), observed=MASK), "data")


def test_training_and_evaluation_refuse_them() -> None:
    model = LinearGaussian(data=2, latent=1)
    guide = LinearGaussianPosterior(model)
    hidden = Batch(x=torch.ones(2, 2, dtype=torch.float64), observed=MASK)
    with pytest.raises(InputError, match="observed is False"):
        fit(model, guide, hidden, progress=False)
    with pytest.raises(InputError, match="observed is False"):
        log_marginal(model, guide, hidden, particles=10)
