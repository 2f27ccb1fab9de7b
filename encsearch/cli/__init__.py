"""The command line: the composition root. Heavy imports happen inside the commands."""
