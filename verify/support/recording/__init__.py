"""What checks leave behind, in numbers and in words."""
