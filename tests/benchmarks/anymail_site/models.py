"""One row for each event, with the columns and indexes Jethook keeps of it (no deliveries, no uniqueness)."""

from typing import Any, ClassVar

from django.db import models


class TrackedEvent(models.Model):
    event_type = models.CharField(max_length=16)
    esp_event_type = models.CharField(max_length=32)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField(auto_now_add=True)
    email = models.CharField(max_length=320, null=True, db_index=True)
    message_id = models.CharField(max_length=40, null=True, db_index=True)
    message_guid = models.CharField(max_length=40, null=True, db_index=True)
    campaign_id = models.CharField(max_length=40, null=True)
    contact_id = models.CharField(max_length=40, null=True)
    list_id = models.CharField(max_length=40, null=True)
    custom_id = models.CharField(max_length=255, null=True, db_index=True)
    custom_campaign = models.CharField(max_length=255, null=True)
    reject_reason = models.CharField(max_length=32, null=True)
    raw = models.JSONField()

    class Meta:
        app_label = "anymail_site"
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["campaign_id", "occurred_at"]),
            models.Index(fields=["esp_event_type", "occurred_at"]),
        ]


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def save_event(sender: Any, event: Any, esp_name: str, **_: Any) -> None:
    """The receiver of anymail's `tracking` signal, as its documentation shows one."""
    del sender, esp_name
    esp = event.esp_event
    TrackedEvent.objects.create(
        event_type=event.event_type,
        esp_event_type=esp["event"],
        occurred_at=event.timestamp,
        email=event.recipient,
        message_id=event.message_id,
        message_guid=_text(esp.get("Message_GUID")),
        campaign_id=_text(esp.get("mj_campaign_id")),
        contact_id=_text(esp.get("mj_contact_id")),
        list_id=_text(esp.get("mj_list_id")),
        custom_id=_text(esp.get("CustomID")),
        custom_campaign=_text(esp.get("customcampaign")),
        reject_reason=event.reject_reason,
        raw=esp,
    )
