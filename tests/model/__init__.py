"""A model of the handover for spin: what no number of trials could show."""
