"""The bare-metal road: everything on one machine, from the distribution's packages."""
