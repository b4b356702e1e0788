"""System calls that another process makes for us, and the way by which it gets home afterwards."""
