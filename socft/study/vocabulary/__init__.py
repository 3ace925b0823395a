"""The names that a study writes into its records and that a report looks for, each defined once."""
