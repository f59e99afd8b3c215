"""The contract with REST clients as a file: `openapi.json`, what may change in it, and a client made from it."""
