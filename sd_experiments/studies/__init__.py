"""What is measured of trainings: reproduction, costates, gradients, time."""
