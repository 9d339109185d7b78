"""What a run's folder tells people: HTML for eyes, JUnit for CI, a few lines for the terminal."""
