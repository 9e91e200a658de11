"""What the project is built, measured and tried with. Nothing of it is installed."""
