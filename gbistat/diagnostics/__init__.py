"""Is a learned background good enough: classifier weights, tests with null distributions, what a difference does to mu."""
