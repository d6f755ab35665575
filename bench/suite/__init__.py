"""What ``engine bench`` runs: the plan, its stages, and the children that measure."""
