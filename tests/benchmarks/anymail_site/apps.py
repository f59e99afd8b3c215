"""Connects the receiver once Django is ready."""

from django.apps import AppConfig


class AnymailSiteConfig(AppConfig):
    name = "tests.benchmarks.anymail_site"
    label = "anymail_site"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from anymail.signals import tracking

        from tests.benchmarks.anymail_site.models import save_event

        tracking.connect(save_event)
