"""The sections of a recipe, a file a room: each field with its meaning, unit and default."""
