"""Where messages go, in which form, and that no error shows the address."""

import os
import stat

import pytest

from tests.alert_server import SECRET, taking_alerts
from tests.messages import names
from trainer.alerts import targets
from trainer.alerts.outbox import Message
from trainer.alerts.targets import Command, DeliveryError, Mail, Webhook, payload, targets_of
from trainer.config.unattended import AlertsConfig

MESSAGE = Message("mine", "gave_up", "no more: <disk> & all")


def failure(target) -> DeliveryError:
    with pytest.raises(DeliveryError) as found:
        target.send(MESSAGE)
    assert SECRET not in str(found.value) and SECRET not in repr(target)
    return found.value


def script(folder, name, body):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_webhook_gets_the_message_in_the_form_of_its_host():
    assert payload(MESSAGE, "hooks.slack.com") == {"text": "mine: gave up: no more: &lt;disk&gt; &amp; all"}
    discord = payload(MESSAGE, "discord.com")
    assert discord == {"content": "mine: gave up: no more: <disk> & all", "allowed_mentions": {"parse": []}}
    other = payload(MESSAGE, "slack.com.example.org")
    assert other["run"] == "mine" and other["event"] == "gave_up" and other["text"] == other["content"]
    assert len(payload(Message("mine", "crash", "x" * 5000), "discord.com")["content"]) <= 2000


def test_a_webhook_delivers():
    with taking_alerts() as server:
        Webhook(server.url).send(MESSAGE)
    assert [message["event"] for message in server.received] == ["gave_up"]


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(500, False), (503, False), (429, False), (408, False), (404, True), (403, True), (302, True)],
)
def test_what_passes_is_worth_another_attempt(status, is_final):
    with taking_alerts() as server:
        server.answers, server.headers = [status], {"Retry-After": "7", "Location": server.url}
        error = failure(Webhook(server.url))
    assert error.is_final is is_final and error.retry_after == 7.0 and names(error, status)
    assert not server.received and server.num_requests == 1


def test_a_server_that_does_not_answer_or_is_not_there_costs_a_bounded_time(monkeypatch):
    monkeypatch.setattr(targets, "TIMEOUT_SECONDS", 0.2)
    with taking_alerts() as server:
        server.delay_seconds = 1.0
        assert not failure(Webhook(server.url)).is_final
    assert not failure(Webhook(server.url)).is_final  # it is gone by now


@pytest.mark.parametrize("url", [f"http://[::1/{SECRET}", f"http://exa mple/{SECRET}", f"http://127.0.0.1:x/{SECRET}"])
def test_no_url_however_broken_is_shown(url):
    failure(Webhook(url))


def test_a_command_gets_the_text_and_the_facts(tmp_path):
    written = tmp_path / "written"
    Command((script(tmp_path, "tell", f'(echo "$1 $TRAINER_ALERT $TRAINER_RUN"; cat) > {written}'), "one")).send(
        MESSAGE
    )
    assert written.read_text() == "one gave_up mine\nmine: gave up: no more: <disk> & all\n"


def test_a_command_that_fails_hangs_or_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "TIMEOUT_SECONDS", 0.3)
    assert names(failure(Command((script(tmp_path, "fails", "echo no such person; exit 3"),))), 3, "no such person")
    assert not failure(Command((script(tmp_path, "hangs", "sleep 60"),))).is_final
    assert failure(Command((str(tmp_path / "nowhere"),))).is_final


def test_mail_goes_by_the_sendmail_of_the_machine(tmp_path, monkeypatch):
    written = tmp_path / "written"
    script(tmp_path, "sendmail", f'(echo "$@"; cat) > {written}')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    Mail(("me@example.org", "root")).send(MESSAGE)
    words, _, letter = written.read_text().partition("\n")
    assert words == "-i -- me@example.org root"
    assert "To: me@example.org, root" in letter and "Subject: mine: gave up" in letter and MESSAGE.text in letter


def test_a_machine_without_sendmail_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(targets, "SENDMAIL_PLACES", ())
    assert failure(Mail(("root",))).is_final


def test_targets_come_from_the_settings_the_environment_and_files(tmp_path):
    url = f"https://example.org/{SECRET}"
    kept = tmp_path / "hook"
    kept.write_text(f"{url}\n")
    for settings, given, environment in (
        ({"webhook": "redacted"}, url, {}),
        ({"webhook_env": "HOOK"}, None, {"HOOK": url}),
        ({"webhook_file": str(kept)}, None, {}),
    ):
        (target,), notices = targets_of(AlertsConfig(**settings), given, environment)
        assert target == Webhook(url) and bool(notices) == (given is not None)
        assert SECRET not in " ".join(notices)
    both, notices = targets_of(AlertsConfig(command="notify 'a b'", mail="root"), None, {})
    assert both == [Command(("notify", "a b")), Mail(("root",))] and not notices


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({"webhook": "redacted"}, {}),
        ({"webhook_env": "HOOK"}, {}),
        ({"webhook_env": "HOOK"}, {"HOOK": f"{SECRET} and more"}),
        ({"webhook_file": "/no/such/file"}, {}),
    ],
)
def test_a_webhook_that_cannot_be_called_is_said_and_ends_nothing(settings, environment):
    found, notices = targets_of(AlertsConfig(**settings), None, environment)
    assert not found and len(notices) == 1 and SECRET not in notices[0]
