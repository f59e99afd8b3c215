"""A stand-in Mailjet, its traffic and a sample sink: for the demo, for `jethook simulate` and for the tests.

Nothing here knows the service's tables or settings: what talks to these parts talks HTTP, as it would to the real ones.
"""
