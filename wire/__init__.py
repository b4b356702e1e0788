"""What both hosts agree on: tickets, messages, the page stream, session states and channels."""
