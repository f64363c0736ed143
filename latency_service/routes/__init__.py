"""Endpoints: each one small function that asks the rules and says nothing of its own."""
