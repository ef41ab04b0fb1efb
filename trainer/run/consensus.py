"""What the ranks agree on after each step, by one small reduction: the loss, the gradient norm, votes to stop, the request to save.

The host must not wait for the device in every step. So the numbers stay device tensors, by which the guard judges before the update; their copy to the host runs behind
the step, and they are collected when the next step has submitted its own (on a CPU, where there is nothing to wait for, at once).
Where something follows a step that needs its result, an evaluation, a save or the end, the result is waited for.
"""

from collections import deque
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator

from trainer.host_copy import AsyncHostCopy
from trainer.safety.spikes import Judged
from trainer.step_result import SaveRequest, StepResult, Verdict

LOSS = 2
"""Where the loss stands in what `agree` returns."""


class Consensus:
    """Makes each step's StepResult. Every method is called on every rank."""

    def __init__(self, accelerator: Accelerator, *, max_steps: int, is_followed: Callable[[int], bool]) -> None:
        """`is_followed` says of a step, by its number, whether work follows which needs the results up to it."""
        self._accelerator, self._max_steps, self._is_followed = accelerator, max_steps, is_followed
        self._copies: deque[tuple[int, AsyncHostCopy]] = deque()
        self.latest: StepResult | None = None
        """The newest that was collected in this launch."""

    def votes_to_stop(self, vote: float) -> float:
        """The sum of the ranks' votes; waits for the device, so it is asked before the first step only."""
        return float(self._accelerator.reduce(torch.tensor(vote, device=self._accelerator.device), reduction="sum"))

    def agree(
        self,
        loss: torch.Tensor,
        *,
        stop_vote: float,
        save_request: SaveRequest,
        save_vote: float = 0.0,
        aux_loss: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sums a step's numbers over the ranks: [votes, request, loss, and the auxiliary loss where there is one], on the device.

        loss      mean over this rank's share of the global batch, a scalar on the device
        aux_loss  of the routers, a mean over this rank's micro-batches; None on every rank for a model without
        """
        vote, request = (
            torch.full_like(loss, stop_vote),
            torch.full_like(loss, save_request + len(SaveRequest) * save_vote),
        )
        means = [loss] if aux_loss is None else [loss, aux_loss.to(loss.dtype)]
        mine = torch.stack([vote, request, *(mean / self._accelerator.num_processes for mean in means)])
        return self._accelerator.reduce(mine, reduction="sum")

    def submit(self, step: int, agreed: torch.Tensor, grad_norm: torch.Tensor, judged: Judged) -> None:
        """Starts the copy of a step's numbers to the host.

        agreed     what `agree` returned
        grad_norm  of the whole gradient, the same on every rank
        """
        own = torch.stack([number.to(agreed.dtype) for number in (grad_norm, judged.score, judged.verdict)])
        self._copies.append((step, AsyncHostCopy(torch.cat([own, agreed]))))

    def newest(self) -> StepResult | None:
        """The result of the step submitted last; on a GPU it waits for that step. None before the first of this launch."""
        return self._result(*self._copies[-1]) if self._copies else self.latest

    def collect(self) -> list[StepResult]:
        """The results that are known now, oldest first: on a CPU that of the step just submitted, on a GPU that of the step before.

        On a GPU the one just submitted too, where `must_settle`.
        """
        results = []
        while self._copies and (len(self._copies) > 1 or not self._copies[0][1].is_asynchronous):
            results.append(self._read())
        if self._copies and self.must_settle(self._copies[-1][0], results):
            results += self.settle()
        return results

    def must_settle(self, step: int, results: Iterable[StepResult]) -> bool:
        """Whether the result of `step` itself is needed before anything else is done; by what every rank knows alike.

        results  those of earlier steps that were not answered yet
        """
        is_last, is_asked = step >= self._max_steps, any(result.needs_answer for result in results)
        return is_last or is_asked or self._is_followed(step)

    def settle(self) -> list[StepResult]:
        """Waits for the results that are still under way, and returns them."""
        return [self._read() for _ in range(len(self._copies))]

    def _read(self) -> StepResult:
        self.latest = self._result(*self._copies.popleft())
        return self.latest

    def _result(self, step: int, copy: AsyncHostCopy) -> StepResult:
        grad_norm, score, verdict, stop_votes, save_request, loss, *aux_loss = copy.read().tolist()
        save_votes, request = divmod(int(save_request), len(SaveRequest))  # rank 0's request, and every rank's vote
        return StepResult(
            step,
            loss,
            grad_norm,
            int(stop_votes),
            SaveRequest(request),
            next(iter(aux_loss), None),
            save_votes=save_votes,
            verdict=Verdict(int(verdict)),
            score=score,
        )
