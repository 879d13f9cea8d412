"""How many nines: durability and availability of groups of disks, by exact chains, closed formulas and fits from data."""
