"""One mini-batch of training: attack, perturb the weights, then one optimiser update for each loss of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from flss_edge import batch_norm
from flss_edge.adversary import frozen
from flss_edge.awp import perturbable, perturbed_weights
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.parallel import Processes
from flss_edge.recipes.config import Loss, Recipe


class Update:
    """The updates of a mini-batch, with everything that stays the same between mini-batches."""

    def __init__(
        self,
        network: Network,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        processes: Processes | None = None,
    ) -> None:
        """Bind the network, its optimiser, the recipe, and the processes that share each mini-batch."""
        self.network, self.optimizer, self.recipe = network, optimizer, recipe
        self.processes = processes or Processes()

    def __call__(self, parts: Sequence[Minibatch]) -> dict[str, Tensor]:
        """Train on one mini-batch and return its loss terms (0-dim tensors, still on the device).

        Args:
            parts: this process's parts of the mini-batch, normalised apart; usually one, the whole.
        """
        recipe, network = self.recipe, self.network
        network.eval()
        if recipe.attack is not None:
            with frozen(network):
                parts = [recipe.attack(network, part, recipe.config) for part in parts]
        network.train()
        terms: dict[str, Tensor] = {}
        for index, loss in enumerate(recipe.losses):
            with self._perturbation(loss, parts) if index == 0 else nullcontext():
                terms |= self._descend(loss, parts)
        return terms

    def _perturbation(self, loss: Loss, parts: Sequence[Minibatch]) -> AbstractContextManager[None]:
        config = self.recipe.config
        if not config.awp_gamma or parts[0].progress < config.awp_start:
            return nullcontext()
        weights = list(perturbable(self.network).values())
        gradients = [torch.zeros_like(weight) for weight in weights]
        with batch_norm.kept(self.network):
            for part in parts:
                value = part.share * _sum(loss(self.network, replace(part, proxy=True), config))
                for total, gradient in zip(gradients, torch.autograd.grad(value, weights), strict=True):
                    total.add_(gradient)
        self.processes.add(gradients)
        return perturbed_weights(weights, gradients, config.awp_gamma)

    def _descend(self, loss: Loss, parts: Sequence[Minibatch]) -> dict[str, Tensor]:
        """Make one optimiser update and return the loss and its terms, summed over this process's parts."""
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        statistics = batch_norm.Averaged(self.network, len(parts), self.processes)
        for part in parts:
            with statistics.part(part.share):
                terms = loss(self.network, part, self.recipe.config)
            value = part.share * _sum(terms)
            value.backward()  # type: ignore[no-untyped-call]
            terms = {loss.__name__: value} | {name: part.share * term for name, term in terms.items()}
            sums = {name: term.detach() + sums.get(name, 0) for name, term in terms.items()}
        statistics.finish()
        self.processes.add([p.grad for p in self.network.parameters() if p.grad is not None])
        self.optimizer.step()
        return sums


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
