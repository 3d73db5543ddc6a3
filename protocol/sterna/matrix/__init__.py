"""The failure matrix: what follows from one fault at one step of a migration, and whether it does."""
