"""The report on flow models: what each method really optimises."""
