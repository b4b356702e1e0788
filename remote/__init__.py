"""lm-migrate's way to the other host: ssh, the bundle that is brought there, and an agent on either host."""
