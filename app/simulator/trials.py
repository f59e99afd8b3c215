"""The test events that Mailjet's web interface sends: zeros and empty text where a message's facts belong.

Three forms have been recorded, of 2018, 2022 and 2025 (gip-inclusion/les-emplois#6500 shows the last).
"""

from typing import Any, Literal

Year = Literal[2018, 2022, 2025]

DEVICE: dict[str, Any] = {"ip": "", "geo": "", "agent": ""}

OWN_FIELDS: dict[str, dict[str, Any]] = {
    "sent": {"mj_message_id": "", "smtp_reply": ""},
    "open": DEVICE,
    "click": {"url": "", **DEVICE},
    "bounce": {"blocked": "", "hard_bounce": "", "error_related_to": "", "error": ""},
    "blocked": {"error_related_to": "", "error": ""},
    "spam": {"source": ""},
    "unsub": {"mj_list_id": "", **DEVICE},
}

LEFT_OUT_IN_2025 = ("CustomID", "Payload", "error", "error_related_to")


def make_test_event(event_type: str, year: Year = 2025, *, at: int = 1_784_628_000) -> dict[str, Any]:
    """One test event; `at` is its `time` in Unix seconds.

    Booleans and list ids are `""` too. `Message_GUID` came in 2025, when the sender's fields and the errors went.
    Raises KeyError for a type that Mailjet does not have.
    """
    event = {
        "event": event_type,
        "time": at,
        "MessageID": 0,
        "email": "",
        "mj_campaign_id": 0,
        "mj_contact_id": 0,
        "customcampaign": "",
        "CustomID": "",
        "Payload": "",
        **OWN_FIELDS[event_type],
    }
    if year == 2025:
        event = {key: value for key, value in event.items() if key not in LEFT_OUT_IN_2025}
        event["Message_GUID"] = ""
    return event
