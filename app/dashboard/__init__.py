"""The dashboard: HTML over the same functions as REST. No SQL of its own, and no HTTP to itself."""
