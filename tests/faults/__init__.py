"""The fault matrix: what goes wrong while a server is launched, serves, or is ended, and what the
gate makes of it. `python -m tests.faults` runs all of it and prints the table.
"""
