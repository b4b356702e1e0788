"""What is particular to an architecture: registers and stubs. Nothing outside this folder names a register."""
