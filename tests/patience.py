"""How long a test waits for another process: a loaded machine may take its time, and a hang still ends."""

PATIENCE_S = 600
