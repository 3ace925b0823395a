"""Running studies, and the names that a study and its report share."""
