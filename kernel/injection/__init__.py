"""System calls that another process makes for us, and the way on which it comes home afterwards."""
