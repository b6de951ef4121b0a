r"""The same pair under Lightning's Trainer: training_step returns the objective's loss, and that is all there is to do.

    loss = -(1/B) Σ_n ELBO(x_n)

Model, guide and objective are plain `torch.nn.Module`s with plain parameters, so that Lightning moves, saves, clips and
distributes them as any others. (`ppl_vae.fit` runs on Lightning Fabric and needs none of this; the Trainer is for
those whose project already has one.)

    pip install lightning                     # or this package's [test] extra
    python examples/svi_lightning.py          # about a quarter of a minute; --smoke takes seconds

Writes metrics.csv, by Lightning's logger.

Measured: log p(x) of held-out digits -22.85 ± 0.003 nats a datum.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ppl_vae import ELBO, Batch
from ppl_vae.build import PairConfig, build
from ppl_vae.data import DataSet, load
from ppl_vae.evaluate import log_marginal

try:
    import lightning
    from lightning.pytorch.loggers import CSVLogger
except ImportError:
    sys.exit("This example needs Lightning's Trainer: pip install lightning")

AT_LEAST = -23.4  # nats a datum


class Inference(lightning.LightningModule):
    """A pair and its objective, as Lightning wants them."""

    def __init__(self, model: nn.Module, guide: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.guide, self.objective = model, guide, objective

    def training_step(self, batch: Batch, _: int) -> Tensor:
        terms = self.objective.terms(self.model, self.guide, batch)  # (B,) each, nats
        self.log_dict(
            {name: value.mean() for name, value in terms.logs.items()},
            prog_bar=True,
            on_epoch=True,
            batch_size=batch.size,
        )
        return terms.loss.mean()

    def on_after_backward(self) -> None:
        for name, parameter in self.named_parameters() if self.global_step == 0 else ():
            if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any():
                raise RuntimeError(f"{name} has no gradient, or one that is 0 or not finite")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def loader(data: DataSet) -> DataLoader:
    # the loader shuffles row numbers, and the data set turns a list of them into a Batch, drawing its binary pixels
    return DataLoader(range(len(data)), batch_size=64, shuffle=True, drop_last=True, collate_fn=data.batch)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a pair by Lightning's Trainer.")
    parser.add_argument("--smoke", action="store_true", help="tiny settings, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/svi_lightning"), help="where metrics go")
    args = parser.parse_args(argv)
    epochs, particles = (1, 10) if args.smoke else (60, 1000)

    train, test = load("digits", binarize="dynamic")
    torch.manual_seed(0)
    pair = build(PairConfig(latent=8, hidden=(128,)), train)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=20,  # of 22 in an epoch
        logger=CSVLogger(args.out, name=None),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not args.smoke,
    )
    trainer.fit(Inference(*pair, ELBO()), loader(train))

    marginal = log_marginal(*pair, test, particles, seed=0)
    print(f"log p(x) {marginal.estimate} nats a datum; {marginal.data}")
    if not args.smoke and not marginal.mean >= AT_LEAST:
        sys.exit(f"log p(x) is {marginal.mean:.2f} nats a datum; {AT_LEAST} or more was expected")


if __name__ == "__main__":
    main()
