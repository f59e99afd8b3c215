"""The floor a Django team would write: django-anymail's Mailjet webhook, each event saved through the ORM."""
