"""The commands: verbs, their options, and how what happens is shown."""
