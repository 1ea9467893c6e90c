"""How long a test waits: longer than anything takes on a loaded machine, so that only a hang fails."""

PATIENCE_S = 600
