"""Subcommands of `keystep` that the models add; what a command needs is imported when it runs."""
