"""`keystep bench load`: a server driven by many simulated headsets, and what that costs."""
