"""Making goldens from the oracle, with the noise beside the truth, and checking those there are."""
