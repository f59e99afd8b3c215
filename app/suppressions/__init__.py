"""Addresses not to be mailed: which events make them, what people add and lift, and how the table is kept up."""
