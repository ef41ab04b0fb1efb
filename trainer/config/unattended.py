"""What a run does while nobody watches it: the settings of restarts, hangs, spikes, rollbacks and alerts."""

import shlex
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from trainer.config.section import NotNegative, Positive, Rate, Section


class RestartConfig(Section):
    """What becomes of a run whose processes have ended, and nobody has asked for that."""

    enabled: bool | Literal["auto"] = "auto"
    """Whether the launch starts it again; `auto`: yes, but not under a scheduler, which does that itself."""
    max: NotNegative = 10
    """Restarts within the window, after which it gives up."""
    window_hours: Rate = 24.0
    """Length of that window."""
    allow_fewer_gpus: bool = False
    """Whether it goes on with fewer GPUs than the cluster file says where some are gone, as many as divide the batch; otherwise it waits for them."""


class HangConfig(Section):
    """When a launch that makes no progress is ended, and so started again."""

    enabled: bool = True
    """Whether the launch watches its ranks."""
    min_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A rank may be silent for at least so long; else for ten times what 99 of 100 steps take."""
    first_seconds: Annotated[float, Field(gt=0)] = 600.0
    """The same until 50 steps are known."""
    max_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """A rank that is silent for so long is ended though it computes."""


class SpikeConfig(Section):
    """Which steps are told from the others by their loss or gradient norm."""

    skip: bool = False
    """Whether their updates are skipped; false: they are only told, the first, second, fourth and so on, since healthy runs have some too."""
    score: Annotated[float, Field(gt=0)] = 10.0
    """A spike stands more than this many median absolute deviations (each at least 1 % of the median) above the median."""
    window: Annotated[int, Field(ge=8)] = 128
    """How many of the last accepted steps the median is taken of."""
    min_history: Positive = 64
    """Accepted steps before any is judged."""
    max_in_a_row: Positive = 5
    """After so many spikes in a row the new level is what is usual: the data may have changed."""

    @model_validator(mode="after")
    def _history_fits(self) -> "SpikeConfig":
        if self.min_history > self.window:
            raise ValueError(f"min_history {self.min_history} must not exceed window {self.window}")
        return self


class RollbackConfig(Section):
    """What becomes of a run that diverges: it goes back to before that, and steps over the data that it diverged on."""

    max: NotNegative = 3
    """How often in a row, without 100 good steps between; then, and with 0, the run ends as `diverged`."""
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What the learning rate is multiplied by after it, from the first step with other data on."""
    lr_steps: NotNegative = 0
    """For how many steps."""


class SafetyConfig(Section):
    """When a step is skipped, and when a run that goes wrong is taken back or ended."""

    spike: SpikeConfig = SpikeConfig()
    rollback: RollbackConfig = RollbackConfig()

    digest_every_steps: NotNegative = 1000
    """Steps between two comparisons, over all processes, of the bits of their weights and moments; where they differ, the run goes back to when they agreed. 0: never."""

    max_bad_steps: Positive = 10
    """The run has diverged after this many steps in a row whose gradient was not finite (each is skipped); in fp8 it goes on in bf16 first."""


AlertKind = Literal[
    "crash",
    "restart",
    "gave_up",
    "hang",
    "diverged",
    "rollback",
    "hardware",
    "disk",
    "precision",
    "slow",
    "waiting",
    "finished",
    "daily",
]
"""What a person is told of; guides/alerts.md says when."""

REDACTED = "redacted"
"""What stands in place of an address that is a secret, in every config that is loaded."""


class AlertsConfig(Section):
    """Who is told of what happens to a run, beside its training; a message that fails never harms the run."""

    events: tuple[AlertKind, ...] = get_args(AlertKind)
    """Of what; by default of all that there is."""
    webhook_env: str | None = None
    """The environment variable that holds the URL of a webhook (Slack, Discord, or any that takes JSON)."""
    webhook_file: str | None = None
    """A file that holds the URL."""
    webhook: str | None = None
    """The URL itself, which is a secret: it stays in the recipe, and everywhere else stands `redacted`."""
    command: tuple[str, ...] = ()
    """A program with its arguments, which gets the text on its standard input and `TRAINER_ALERT` (the event) and `TRAINER_RUN` in its environment."""
    mail: tuple[str, ...] = ()
    """Addresses that are written to by the machine's `sendmail`."""
    every_minutes: Annotated[float, Field(ge=0)] = 10.0
    """At most one message of a kind in so many minutes; what happened meanwhile is told together with the next one."""
    daily_hour: Annotated[int, Field(ge=0, le=23)] = 8
    """The hour of the machine's clock at which the daily line is sent."""

    @property
    def num_targets(self) -> int:
        """How many are told: a webhook, a command, mail."""
        webhooks = (self.webhook, self.webhook_env, self.webhook_file)
        return any(one is not None for one in webhooks) + bool(self.command) + bool(self.mail)

    @field_validator("events", "mail", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @field_validator("command", mode="before")
    @classmethod
    def _words_of_a_line(cls, given: object) -> object:
        return tuple(shlex.split(given)) if isinstance(given, str) else given

    @field_validator("webhook")
    @classmethod
    def _is_no_secret(cls, webhook: str | None) -> str | None:
        if webhook not in (None, REDACTED):
            raise ValueError("a config holds no URL of a webhook; config/load.py takes it out")
        return webhook

    @field_validator("mail")
    @classmethod
    def _are_addresses(cls, mail: tuple[str, ...]) -> tuple[str, ...]:
        if any(not address or address.startswith("-") or any(map(str.isspace, address)) for address in mail):
            raise ValueError("a list of addresses without blanks, e.g. [me@example.org]")
        return mail

    @model_validator(mode="after")
    def _is_one_webhook(self) -> "AlertsConfig":
        if sum(one is not None for one in (self.webhook, self.webhook_env, self.webhook_file)) > 1:
            raise ValueError("set one of alerts.webhook_env, alerts.webhook_file and alerts.webhook")
        return self
