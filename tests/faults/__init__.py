"""What breaks at night, done on purpose: `python -m tests.faults`."""
