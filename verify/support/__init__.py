"""What the claims share: instances, strategies, measurements, records and the command."""
