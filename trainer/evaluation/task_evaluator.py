"""Tasks put to a model: the same answers for any number of ranks, and no trace on the model or in the random state."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.evaluation.accuracy import Decision, TaskResult, decide, result
from trainer.evaluation.generate import Tokenizer, num_positions
from trainer.evaluation.loss import evaluating
from trainer.evaluation.scoring import Encoded, encode_task, score_rows
from trainer.evaluation.tasks import Task
from trainer.parallel import Parallel, Replicated


class TaskEvaluator:
    """Some tasks and the model they are put to. Every method is called on every rank, which takes its share of the rows; all give the same."""

    def __init__(
        self,
        tasks: Sequence[Task],
        model: nn.Module,
        token_scores: Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        tokenizer: Tokenizer | None,
        accelerator: Accelerator,
        parallel: Parallel | None = None,
    ) -> None:
        """Reads the tasks as tokens.

        model         the transformers model, never compiled: its weights may change between two evaluations
        token_scores  `model.scores.token_scores`
        parallel      how the model is; None: this process holds it whole
        raises        ConfigError when there are tasks and no tokenizer, DataError when an item does not fit the model
        """
        if tasks and tokenizer is None:
            raise ConfigError(
                "evaluation tasks are text, and there is no tokenizer to read it: set data.tokenizer, or leave the tasks out"
            )
        positions = num_positions(model.config)
        self._encoded = [
            encode_task(
                task,
                tokenizer.encode,
                start_id=tokenizer.start_id,
                begins_always=tokenizer.begins_with_bos,
                num_positions=positions,
            )
            for task in tasks
            if tokenizer is not None
        ]
        self._model, self._token_scores, self._accelerator = model, token_scores, accelerator
        self._parallel = parallel or Replicated(accelerator)

    def facts(self) -> dict[str, float]:
        """The numbers that a run writes down, by task and name."""
        return {name: value for result in self.results() for name, value in result.facts().items()}

    def results(self, progress: Callable[[str, float], None] = lambda task, fraction: None) -> list[TaskResult]:
        """The numbers of each task; `progress` hears a task's name and the fraction of it that this rank has done."""
        return [result(encoded.task, self._decisions(encoded, progress)) for encoded in self._encoded]

    def decisions(self) -> list[list[Decision]]:
        """For each task the decision on each of its items."""
        return [self._decisions(encoded) for encoded in self._encoded]

    def _decisions(
        self, encoded: Encoded, progress: Callable[[str, float], None] = lambda task, fraction: None
    ) -> list[Decision]:
        accelerator = self._accelerator
        with evaluating(self._model), self._parallel.uncompiled():
            scores = score_rows(
                encoded.rows,
                self._score,
                device=accelerator.device,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                reduce=lambda totals: accelerator.reduce(totals, reduction="sum"),
                in_step=self._parallel.is_sharded,
                progress=lambda fraction: progress(encoded.task.name, fraction),
            )
        return decide(encoded, scores)

    def _score(self, inputs: Tensor, positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        # Both settings belong to the thread, and on a CPU this runs in several.
        with torch.no_grad(), self._accelerator.autocast():
            return self._token_scores(self._model, inputs, positions, wanted)
