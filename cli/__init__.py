"""The commands: verbs, their options, and how events are shown; the Python API."""
