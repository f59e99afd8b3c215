"""How fast Jethook is and what it holds, beside floors measured in the same run: `python -m tests.benchmarks`."""
