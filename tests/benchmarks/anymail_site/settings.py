"""Django's defaults as `startproject` writes them, without what a webhook never uses (sessions, admin, templates).

`BENCHMARK_DATABASE` is the file, `BENCHMARK_ATOMIC=1` turns ATOMIC_REQUESTS on. SQLite is as durable and as quick as
Jethook's (WAL, synchronous=FULL, a writer that waits its turn): a floor slow for want of a pragma proves nothing.
"""

import os

SECRET_KEY = "benchmark"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "tests.benchmarks.anymail_site.urls"
INSTALLED_APPS = ["anymail", "tests.benchmarks.anymail_site"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["BENCHMARK_DATABASE"],
        "CONN_MAX_AGE": None,
        "ATOMIC_REQUESTS": os.environ.get("BENCHMARK_ATOMIC") == "1",
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        },
    }
}
ANYMAIL = {"WEBHOOK_SECRET": os.environ["BENCHMARK_CREDENTIALS"]}
USE_TZ = True
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
