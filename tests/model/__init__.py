"""The whole service against a plain model of it: random mail in, every answer compared. See `__main__` for the command.

`reading` and `world` say what is stored, `standing` who is suppressed, `counting` the statistics: each a dictionary and
a loop, written from the README and not from the code. `stream` makes the mail, `service` runs and asks Jethook,
`comparing` holds one against the other, `story` tells what happens in which order.
"""
