"""Every knob of the service: read from the environment once, frozen, passed in.

Names carry their unit. Nested names use two underscores (`JETHOOK_SINKS__CRM__URL`), lists are comma separated or JSON,
each secret has a `…_FILE` twin. `load_settings` reports all faults together, each by the variable's name, because a
person who mends a container's environment at night should have to start it once.
"""

from app.settings.masking import mask_url
from app.settings.model import ConnectionSettings, Settings, SinkSettings, WatchSettings, WebhookSettings
from app.settings.reading import load_settings
from app.settings.reference import SettingRow, effective_rows, reference_rows
from app.settings.values import CONTACT_EVENTS, EVENT_TYPES, HEARD

__all__ = [
    "CONTACT_EVENTS",
    "EVENT_TYPES",
    "HEARD",
    "ConnectionSettings",
    "SettingRow",
    "Settings",
    "SinkSettings",
    "WatchSettings",
    "WebhookSettings",
    "effective_rows",
    "load_settings",
    "mask_url",
    "reference_rows",
]
