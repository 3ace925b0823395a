"""The oscillator: costates learnt from paths, and their limits for infinitely many."""
