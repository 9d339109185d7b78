"""The catalogue of mutants: real bugs of SD v1 ports, each applied to `sd1_impl` from outside."""
