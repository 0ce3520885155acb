"""Starts the suite and its peers for service and end-to-end tests; see suite.py."""
