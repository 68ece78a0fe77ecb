"""What processes that learn as one exchange, beside the gradients: rows that all are to have, rows dealt out anew.

One process needs neither Lightning Fabric nor a process group; with several, a launched Fabric says who is who.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ALONE", "Processes"]

Network = TypeVar("Network", bound=nn.Module)


class Processes:
    """The processes of a training, seen from one of them.

    Args:
        fabric: launched, or None for this process alone, on the processor.

    Attributes:
        rank: number of this process.
        count: how many there are.
        device: of this process.
    """

    def __init__(self, fabric: Any = None) -> None:
        self.fabric = fabric
        self.rank = 0 if fabric is None else int(fabric.global_rank)
        self.count = 1 if fabric is None else int(fabric.world_size)
        self.device = torch.device("cpu") if fabric is None else fabric.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def set_up(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network on this process's device, its gradients averaged over all; and its optimiser."""
        if self.fabric is None:
            return network, optimiser
        made: tuple[nn.Module, Any] = self.fabric.setup(network, optimiser)
        return made

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        if self.fabric is None:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def gathered(self, rows: Tensor) -> Tensor:
        """(n, ...) of each process -> (count * n, ...) on each, in the order of the ranks; without gradients."""
        if self.count == 1:
            return rows
        made = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(made, rows.contiguous())
        return torch.cat(made)

    def dealt(self, rows: Tensor, order: Tensor) -> Tensor:
        """Rows dealt out anew: process r gets rows ``order[r * n : (r + 1) * n]`` of all.

        Each row travels once, to where it is wanted.

        Args:
            rows: (n, ...), of each process as many.
            order: (count * n,) a permutation, the same on each process, on the processor.
        """
        if self.count == 1:
            return rows[order.to(rows.device)]
        n = len(rows)
        goes = order.argsort()[self.rank * n : (self.rank + 1) * n]  # where my rows are wanted
        comes = order[self.rank * n : (self.rank + 1) * n]  # what I want
        sent = rows[goes.argsort().to(rows.device)].contiguous()  # by destination; within one, in its order
        received = torch.empty_like(sent)
        received_of, sent_to = (torch.bincount(p // n, minlength=self.count).tolist() for p in (comes, goes))
        dist.all_to_all_single(received, sent, received_of, sent_to)
        by_source = (comes // n).argsort(stable=True)
        return received[by_source.argsort().to(rows.device)]

    def mean(self, *figures: float) -> list[float]:
        """Means of a figure over all processes, of each figure given."""
        if self.count == 1:
            return list(figures)
        made = self.gathered(torch.tensor([figures], dtype=torch.float64, device=self.device))
        return [float(v) for v in made.mean(0)]

    def share_buffers(self, network: Network) -> Network:
        """Give all processes the leading one's buffers (statistics of norms), in place; parameters are alike."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)
        return network

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            self.fabric.barrier()


#: this process by itself
ALONE = Processes()
