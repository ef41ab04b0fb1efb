"""Where messages go: a webhook, a command, the machine's sendmail. None of their errors shows the webhook's URL, which is a secret."""

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from trainer import files
from trainer.alerts.outbox import Message
from trainer.config.secrets import is_web_address
from trainer.config.unattended import REDACTED, AlertsConfig
from trainer.errors import TrainerError

TIMEOUT_SECONDS = 10.0
"""For one attempt."""

MAX_CHARACTERS = 1900
"""Of a text in a webhook: Discord takes 2,000."""

SENDMAIL_PLACES = ("/usr/sbin", "/usr/lib")
"""Where sendmail lies on machines that do not have it in PATH."""


class DeliveryError(TrainerError):
    """A message did not arrive."""

    def __init__(self, words: str, *, is_final: bool = False, retry_after: float | None = None) -> None:
        """is_final: another attempt would fail alike. retry_after: seconds that were asked for"""
        super().__init__(words)
        self.is_final, self.retry_after = is_final, retry_after


class Target(Protocol):
    """Where a message goes."""

    @property
    def name(self) -> str:
        """In one word, for a person."""

    def send(self, message: Message) -> None:
        """One attempt of some seconds at most. raises DeliveryError"""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib follows a redirect of a POST with a GET, which delivers nothing and answers 200."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass(frozen=True)
class Webhook:
    """A URL that takes JSON by POST."""

    url: str = field(repr=False)
    name: str = "webhook"

    def send(self, message: Message) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "accelerate-trainer"}
        try:
            body = json.dumps(payload(message, urlsplit(self.url).hostname or "")).encode()
            request = urllib.request.Request(self.url, body, headers, method="POST")
            with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error.code, error.headers.get("Retry-After")) from None
        except TimeoutError:
            raise DeliveryError(f"no answer within {TIMEOUT_SECONDS:g} s") from None
        except urllib.error.URLError as error:
            reason = error.reason
            words = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
            raise DeliveryError(f"no connection ({words})") from None
        except Exception as error:  # http.client, ssl and idna raise many kinds, whose words may hold the URL
            raise DeliveryError(f"the connection broke ({type(error).__name__})") from None


def payload(message: Message, host: str) -> dict[str, Any]:
    """The JSON of a webhook, in the form that its host reads: Slack `text`, Discord `content`, others both and the facts."""
    text = message.text if len(message.text) <= MAX_CHARACTERS else f"{message.text[: MAX_CHARACTERS - 4]} ..."
    plain = f"{message.title}: {text}"
    slack = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    discord = {"content": plain, "allowed_mentions": {"parse": []}}  # or words of the run could call everyone
    if _is_of(host, "slack.com"):
        return {"text": slack}
    if _is_of(host, "discord.com", "discordapp.com"):
        return discord
    return {"text": plain, **discord, "run": message.run, "event": message.kind}


def _is_of(host: str, *domains: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _refused(status: int, retry_after: str | None) -> DeliveryError:
    """Too much, too slow and the server's own troubles pass; that the address is wrong does not."""
    passes = status in (408, 425, 429) or status >= 500
    seconds = float(retry_after) if retry_after and retry_after.strip().isdigit() else None
    return DeliveryError(f"it answered {status}", is_final=not passes, retry_after=seconds)


@dataclass(frozen=True)
class Command:
    """A program of the user's own."""

    words: tuple[str, ...]
    name: str = "command"

    def send(self, message: Message) -> None:
        told = {"TRAINER_ALERT": message.kind, "TRAINER_RUN": message.run}
        _run(self.words, f"{message.title}: {message.text}\n", {**os.environ, **told})


@dataclass(frozen=True)
class Mail:
    """The machine's own sendmail."""

    addresses: tuple[str, ...]
    name: str = "mail"

    def send(self, message: Message) -> None:
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), *SENDMAIL_PLACES))
        program = shutil.which("sendmail", path=places)
        if program is None:
            raise DeliveryError(
                "this machine has no sendmail; install one, or take a webhook or a command", is_final=True
            )
        letter = EmailMessage()
        letter["To"], letter["Subject"] = ", ".join(self.addresses), message.title
        letter.set_content(message.text)
        _run([program, "-i", "--", *self.addresses], letter.as_string(), dict(os.environ))


def _run(command: Sequence[str], text: str, environment: Mapping[str, str]) -> None:
    """Runs a program with a text on its standard input; what it says is shown where it fails."""
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise DeliveryError(f"{command[0]} does not start ({words})", is_final=True) from None
    try:
        said, _ = child.communicate(text.encode(), TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what it has started, too
        child.communicate()
        raise DeliveryError(f"{command[0]} was not done within {TIMEOUT_SECONDS:g} s") from None
    if child.returncode:
        words = " ".join(said.decode(errors="replace").split())[-200:]
        raise DeliveryError(f"{command[0]} ended with {child.returncode}" + (f": {words}" if words else ""))


def targets_of(
    settings: AlertsConfig, webhook: str | None, environment: Mapping[str, str]
) -> tuple[list[Target], list[str]]:
    """Where a run's alerts go, and what a person should know of that, as sentences.

    webhook  the URL that its recipe holds
    """
    found: list[Target] = []
    notices = []
    url, problem = _address(settings, webhook, environment)
    if url is not None:
        found.append(Webhook(url))
    if problem:
        notices.append(problem)
    if settings.command:
        found.append(Command(settings.command))
    if settings.mail:
        found.append(Mail(settings.mail))
    return found, notices


def _address(
    settings: AlertsConfig, webhook: str | None, environment: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The URL of the webhook, and what is to be said of it."""
    if webhook is not None:
        secret = "alerts.webhook is a secret in a recipe, which is copied and shown easily (the run's own files say `redacted`)"
        return webhook, f"{secret}; alerts.webhook_env=NAME or alerts.webhook_file=PATH keep it elsewhere"
    if settings.webhook == REDACTED:
        return (
            None,
            "alerts.webhook is `redacted` here, so no webhook is called; give the recipe that holds it, or alerts.webhook_env",
        )
    if settings.webhook_env is not None:
        where, found = (
            f"the variable {settings.webhook_env} (alerts.webhook_env)",
            environment.get(settings.webhook_env),
        )
        if found is None:
            return None, f"{where} is not set, so no webhook is called; export it before the launch"
    elif settings.webhook_file is not None:
        path = Path(os.path.expanduser(settings.webhook_file))
        where = f"the file {files.project_folder() / path} (alerts.webhook_file)"
        try:
            found = (files.project_folder() / path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or "no text"
            return None, f"{where} cannot be read ({words}), so no webhook is called"
    else:
        return None, None
    if is_web_address(found.strip()):
        return found.strip(), None
    return None, f"{where} holds no http or https URL, so no webhook is called"
