"""Training: from a configuration to a run that can be continued."""
