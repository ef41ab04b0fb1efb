"""The chunked loss under DDP: tied or not, by passes or by one kernel, two ranks have the gradients of the whole batch."""

import copy

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.model import head
from trainer.model.fused import log_likelihoods
from trainer.model.head import chunked_cross_entropy
from trainer.parallel import parallel_of


class Tiny(nn.Module):
    """Embedding, one hidden layer and the chunked head: all of a model that DDP's hooks can tell apart."""

    def __init__(self, tied: bool, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.tokens, self.hidden, self.head = nn.Embedding(64, 8), nn.Linear(8, 8), nn.Linear(8, 64, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.tokens(inputs))).flatten(0, 1)
        loss, count = chunked_cross_entropy(
            hidden, self.head.weight, labels.flatten(), vocab_size=60, chunk_tokens=5, fused=self.fused
        )
        return loss / count


def _rank(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    compiled = torch.compile(log_likelihoods, dynamic=False, fullgraph=True, backend="aot_eager")
    head.compiled_log_likelihoods = lambda: compiled
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        for tied, fused in ((False, False), (True, False), (True, True)):
            torch.manual_seed(0)
            whole = Tiny(tied, fused)
            tokens = torch.randint(60, (4, 13))
            inputs, labels = tokens[:, :-1], tokens[:, 1:]
            model = DistributedDataParallel(copy.deepcopy(whole))
            first, second = slice(rank, rank + 1), slice(rank + 2, rank + 3)
            with model.no_sync():  # two micro-batches a rank and one all-reduce
                (model(inputs[first], labels[first]) / 2).backward()
            (model(inputs[second], labels[second]) / 2).backward()
            whole(inputs, labels).backward()
            for shared, alone in zip(model.module.parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(shared.grad, alone.grad, rtol=1e-5, atol=1e-7)
    finally:
        parallel_of(Accelerator(cpu=True)).end(model)


def test_two_ranks_have_the_gradients_of_the_whole_batch(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path / "rendezvous"),), nprocs=2)
