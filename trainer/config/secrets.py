"""Takes out of a recipe what no config may hold: the URL of a webhook, with which anybody could write in its owner's name.

A config is written into the run's folder, its checkpoints, trackers and exports, and shown on request. So the secret leaves the settings
before they become a Config, and goes another way to what sends alerts.
"""

from urllib.parse import urlsplit

from trainer.config.plain import Document
from trainer.config.unattended import REDACTED


def take_webhook(document: Document) -> tuple[str | None, list[str]]:
    """Puts `redacted` in place of a URL in alerts.webhook; returns the URL, and what is wrong with it in words that do not show it."""
    alerts = document.values.get("alerts")
    if not isinstance(alerts, dict) or alerts.get("webhook") in (None, REDACTED):
        return None, []
    given, alerts["webhook"] = alerts["webhook"], REDACTED
    places = [document.places[key] for key in ("alerts.webhook", "alerts") if key in document.places]
    if "override" in places:
        seen = "whoever lists this machine's processes sees what is typed, and the journal keeps it"
        return None, [f"alerts.webhook is typed, and {seen}; give alerts.webhook_env=NAME or alerts.webhook_file=PATH"]
    if not is_web_address(given):
        return None, [
            f"alerts.webhook ({places[0]}) is no http or https URL; copy the whole URL from Slack, Discord or your own server"
        ]
    return given, []


def is_web_address(given: object) -> bool:
    """Whether it is the URL of something that is asked by http or https."""
    if not isinstance(given, str) or any(map(str.isspace, given)):
        return False
    try:
        parts = urlsplit(given)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
