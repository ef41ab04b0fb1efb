"""A run of one layer in this process, with everything that saves and restores it."""

import torch
from accelerate import Accelerator

from tests.small_checkpoints import CONFIG
from trainer.checkpoint.context import CheckpointContext
from trainer.checkpoint.format.manifest import Description
from trainer.checkpoint.format.retention import Policy
from trainer.checkpoint.format.whole_files import WholeFiles
from trainer.checkpoint.ranks import Ranks
from trainer.checkpoint.resume.restore import Restorer
from trainer.checkpoint.save.checkpointer import Checkpointer
from trainer.checkpoint.save.forecast import Course
from trainer.config.schema import CheckpointConfig
from trainer.state import Progress, TrainState

TWO_AND_BEST = Policy(2, 1)


def one_layer():
    model = torch.nn.Linear(4, 4)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


class Small:
    """A model, its optimizer, and everything that saves and restores them."""

    def __init__(
        self, store, settings=None, *, build=one_layer, max_steps=100, policy=TWO_AND_BEST, layout=None, **changes
    ):
        torch.manual_seed(0)
        self.store, self.synced, self.drawn = store, [], []
        self.accelerator = Accelerator(cpu=True)
        self.ranks = Ranks(self.accelerator, store.folder)
        self.model, self.optimizer = self.accelerator.prepare(*build())
        self.state = TrainState(Progress())
        facts = {"identity": {"seed": 1}, "versions": {"torch": "1"}, "precision": "no", **changes}
        description = Description(model={}, tokenizer=None, vocab_size=9, config_text=CONFIG, **facts)
        self.folder = store.folder.parent.parent / "run"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "metrics.jsonl").touch()
        self.context = CheckpointContext(
            accelerator=self.accelerator,
            ranks=self.ranks,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state,
            store=store,
            description=description,
            policy=policy,
            run_folder=self.folder,
            metrics_file=self.folder / "metrics.jsonl",
            marker=self.folder / ".saved",
            layout=layout or WholeFiles(),
        )
        # Several runs live in one process here; the lock has tests of its own.
        self.restorer = Restorer(self.context, max_steps, take_lock=lambda folder: None)
        self.course = Course(max_steps=max_steps, global_batch=4, sequences_per_epoch=40, evaluation_every_steps=None)
        self.checkpointer = self.saving(settings or CheckpointConfig(every_steps=5, asynchronous=False))

    def saving(self, settings):
        """A Checkpointer of this run that has begun; what it draws is in `drawn`."""
        checkpointer = Checkpointer(
            self.context,
            settings,
            self.course,
            before_commit=lambda: self.synced.append(self.state.progress.step),
            report=lambda step, values: self.drawn.append((step, values)),
        )
        checkpointer.begin(None)
        return checkpointer

    def step(self):
        self.model(torch.rand(2, 4)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.advance(4, 32)

    def save(self, reason="periodic", val_loss=None):
        self.checkpointer.save(reason, loss=1.5, val_loss=val_loss)

    def blocks_into(self, store):
        """From here on saves are waited for, and go to another folder; the moment that was saved last may be saved again."""
        self.checkpointer.end(wait_for_copies=False)
        self.store = self.context.store = store
        self.checkpointer = self.saving(CheckpointConfig(asynchronous=False))

    def resume(self, wanted="latest"):
        resolution = self.restorer.find(wanted)
        self.restorer.restore(resolution, wanted, lambda: None)
        self.restorer.tell_changes()
        self.checkpointer.begin(resolution.manifest.step)

    def everything(self):
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = (*self.model.state_dict().values(), *moments, torch.get_rng_state())
        return [tensor.tolist() for tensor in tensors] + [self.state.state_dict()]


def end_writer(small):
    """Ends the writer of a run whose test is over, if it has one that lives."""
    writer = small.checkpointer.writer
    if writer is not None and writer._process.poll() is None:
        writer._process.kill()
        writer._process.wait(30)
