"""How a card is drawn: `html` for the page, `plots` for its pictures (the only module that draws, with matplotlib)."""
