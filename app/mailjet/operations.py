"""Every operation at Mailjet by name: what error texts and the metric of calls tell. A closed list."""

from typing import Literal, get_args

CallbackOperation = Literal["list", "create", "update", "delete"]
Operation = Literal[
    "list", "create", "update", "delete",  # callbacks
    "list_contacts", "get_contact", "create_contact", "update_contact", "delete_contact",
    "get_contact_data", "update_contact_data",
    "list_lists", "create_list", "subscribe", "subscribe_many", "subscribe_status",
    "list_messages", "get_message", "message_history", "send_messages", "count_events",
    "list_campaigns", "get_campaign",
    "list_drafts", "get_draft", "create_draft", "update_draft", "get_draft_content", "write_draft_content",
    "test_draft", "schedule_draft", "unschedule_draft", "send_draft",
    "sms_send", "sms_list", "call",
]  # fmt: skip
OPERATIONS: tuple[str, ...] = get_args(Operation)
