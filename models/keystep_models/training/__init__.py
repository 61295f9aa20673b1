"""Everything that needs torch: encoders, losses, export."""
