"""Jethook keeps, relays and answers questions about what Mailjet says happened to every message."""

__version__ = "0.1.0"
